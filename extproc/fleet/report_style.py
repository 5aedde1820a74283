"""The style sheet of a plan's page: light and dark mode, for phones and desktops."""

STYLE = """
:root { color-scheme: light dark;
  --page: #fcfcfb; --text: #1c1e21; --muted: #666b73; --line: #dcdee2; --card: #ffffff;
  --a: #2563a8; --b: #c2571a; --c: #3d8361; --d: #7d5ba6; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root {
  --page: #16181b; --text: #e6e7e9; --muted: #9aa0a8; --line: #363a40; --card: #1e2125;
  --a: #6aa7e8; --b: #eb9458; --c: #74bf9b; --d: #b79be0; --bad: #f2867e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 32px 24px 64px;
  background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 17px; margin: 0 0 2px; }
p { margin: 0 0 12px; } .muted { color: var(--muted); }
.verdict { font-size: 17px; margin: 20px 0; padding-left: 14px;
  border-left: 4px solid var(--a); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr));
  gap: 12px; margin: 20px 0; }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 14px; }
.figure b { display: block; font-size: 24px; font-variant-numeric: tabular-nums; }
.plots { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); }
.plots + p { margin-top: 20px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  min-width: 0; padding: 16px; } section.wide { grid-column: 1 / -1; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--muted); }
svg .strong { fill: var(--text); }
.scroll { overflow-x: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; list-style: none;
  margin: 6px 0 0; padding: 0; font-size: 13px; color: var(--muted); }
.legend i { display: inline-block; margin-right: 6px; vertical-align: 4px;
  width: 20px; }
.bar { display: grid; align-items: center; gap: 0 10px; margin: 5px 0;
  grid-template-columns: 210px 1fr 250px; font-variant-numeric: tabular-nums; }
.track { display: block; height: 16px; }
.fill { border-radius: 2px; display: block; height: 16px; min-width: 1px; }
pre { background: var(--page); border: 1px solid var(--line); border-radius: 6px;
  font-size: 13px; margin: 0 0 10px; overflow-x: auto; padding: 10px 12px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 8px; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; } th { vertical-align: bottom; }
th { font-weight: 600; color: var(--muted); } th:first-child, td:first-child {
  text-align: left; } tr.ours td { font-weight: 600; } .missed { color: var(--bad); }
@media (max-width: 640px) { body { padding: 16px 12px 48px; }
  .bar { grid-template-columns: 1fr; margin: 0 0 10px; } section { padding: 12px; } }
"""
