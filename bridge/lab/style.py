"""The report's style: light and dark by the reader's own choice, one column on a phone."""

STYLE = """
:root { color-scheme: light dark; --ground: #fbfaf8; --ink: #1d1b18; --soft: #6a645c;
  --line: #dcd7cf; --card: #fff; --s0: #0f6fb8; --s1: #c2500f; --s2: #2c7d3f; --s3: #8b3fa0;
  --s4: #a07400; --s5: #b02a54; --mark: 15 111 184; }
@media (prefers-color-scheme: dark) { :root { --ground: #171614; --ink: #ece8e1; --soft: #a39c91;
  --line: #3a3732; --card: #211f1c; --s0: #62b0ec; --s1: #f09a63; --s2: #7cc98c; --s3: #cf96df;
  --s4: #dcb84e; --s5: #f082a5; --mark: 98 176 236; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; overflow-wrap: anywhere; }
h3 { font-size: 1.05rem; margin: 2rem 0 .25rem; }
h4 { font-size: .9rem; margin: .75rem 0 .25rem; color: var(--soft); font-weight: 600; }
p { margin: .25rem 0 .75rem; max-width: 44rem; color: var(--soft); }
.prompt::before { content: "“"; } .prompt::after { content: "”"; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .3rem .6rem; text-align: start; border-bottom: 1px solid var(--line);
  vertical-align: top; max-width: 26rem; overflow-wrap: break-word; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td:first-child { white-space: nowrap; }
td.n { text-align: end; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { display: block; width: 100%; max-width: 38rem; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .tick { fill: var(--soft); font-size: 11px; }
svg .axis { stroke: var(--line); }
svg .chance { stroke-dasharray: 4 3; stroke-width: 1.5; }
svg circle { fill-opacity: .6; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0;
  margin: .25rem 0; font-size: .875rem; }
.swatch { display: inline-block; width: .75rem; height: .75rem; border-radius: 50%;
  margin-inline-end: .35rem; }
.words { list-style: none; display: flex; flex-wrap: wrap; gap: .35rem; padding: 0; margin: 0; }
.words li { padding: .25rem .55rem; border-radius: .4rem; border: 1px solid var(--line);
  background: rgb(var(--mark) / calc(var(--heat) * .45)); text-align: center; }
.words small { display: block; font-size: .75rem; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: .75rem; align-items: start; }
figure { margin: 0; min-width: 0; }
.grid > figure { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .5rem; }
img { display: block; width: 100%; height: auto; border-radius: .3rem; }
figcaption { font-size: .85rem; line-height: 1.35; margin-top: .35rem; overflow-wrap: anywhere; }
figcaption small { display: block; color: var(--soft); font-size: .75rem; }
.heats { display: grid; grid-template-columns: repeat(2, 1fr); gap: .4rem; margin-top: .4rem; }
.heats figcaption { font-size: .75rem; margin-top: .15rem; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--soft); }
.grid summary { font-size: .8rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .875rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""
