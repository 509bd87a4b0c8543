"""What bridge is measured by: a judge of pictures, tasks with known truth, results with intervals."""
