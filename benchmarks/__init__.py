"""What bridge is measured by: a judge, tasks with known truth, results with intervals."""
