"""The page's style: light or dark as the reader has it, and no wider than their screen."""

STYLE = """
:root{color-scheme:light dark;--bg:#fcfcfb;--fg:#1d2126;--soft:#5a636e;--line:#d9dce0;--card:#fff;
--accent:#0b63b5;--good:#1a7f4b;--bad:#b3401c}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e4e7ea;--soft:#a0a9b3;--line:#343a41;
--card:#1c2024;--accent:#6db3f2;--good:#5cc98f;--bad:#f08a64}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:1rem;max-width:72rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0}
h2{font-size:1.25rem;margin:2.5rem 0 .5rem;padding-top:.75rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.5rem 0 .5rem}
h4{font-size:1rem;margin:1rem 0 .25rem}
p{margin:.5rem 0;max-width:46rem}
a{color:var(--accent)}
.soft,figcaption,caption{color:var(--soft);font-size:.9rem}
.scroll{overflow-x:auto;overscroll-behavior-x:contain}
.scroll+.scroll{margin-top:1.25rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
caption{text-align:left;padding:.25rem 0}
caption>span{display:block;position:sticky;left:0;width:fit-content;max-width:calc(100vw - 2rem)}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
thead th{color:var(--soft);font-weight:600;border-bottom:2px solid var(--line)}
tbody th,th.text,td.text{text-align:left}
tbody th{font-weight:500}
tr.average>*{font-weight:700;border-top:2px solid var(--line)}
figure{margin:0;padding:.75rem;background:var(--card);border:1px solid var(--line);
border-radius:8px;min-width:0}
figcaption{margin-top:.4rem}
.figures,.pair{display:grid;gap:.75rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr))}
.pair{align-items:start;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));column-gap:1.5rem;
margin:.75rem 0}
.names{font-size:6.5px}
.plot.matrix-picture{max-width:44rem}
.wide{margin-top:.75rem}
.wide:has(table),figure:has(>.drawing){width:fit-content;max-width:100%}
.plot{display:block;width:100%;max-width:30rem;height:auto;font:11px system-ui,sans-serif}
.plot text{fill:var(--soft)}
.grid{stroke:var(--line);fill:none}
.other,.chosen{fill:none;stroke-linejoin:round}
.other{stroke:var(--soft);stroke-opacity:.45}
.chosen{stroke:var(--accent);stroke-width:2.5}
.choice{fill:var(--accent);stroke:var(--card);stroke-width:2}
.candidate{fill:var(--accent);stroke:var(--accent);stroke-width:.75}
.picked{stroke:var(--fg);stroke-width:2.5}
.failed{fill:none;stroke:var(--bad);stroke-dasharray:2 2}
.frame{fill:none;stroke:var(--line)}
rect.right{fill:var(--accent)}
rect.wrong{fill:var(--bad)}
.matrix td,.matrix th{padding:.15rem .35rem;border:0}
.matrix td{min-width:2.1rem;text-align:center;
background:color-mix(in srgb,currentColor 4%,transparent)}
.matrix thead th{text-align:center}
.matrix td.right[style]{background:color-mix(in srgb,var(--accent) var(--v),transparent)}
.matrix td.wrong[style]{background:color-mix(in srgb,var(--bad) var(--v),transparent)}
.looks{display:grid;gap:.75rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr))}
.panels{display:grid;grid-template-columns:repeat(3,1fr);gap:.4rem;text-align:center;font-size:.8rem;
color:var(--soft)}
.panels svg{display:block;width:100%;height:auto;border-radius:4px}
.good{color:var(--good);font-weight:600}
.bad{color:var(--bad);font-weight:600}
.drawing{display:block;max-width:100%;height:auto;background:#fff;border-radius:4px}
nav ol{columns:17rem;padding-left:1.5rem;margin:.5rem 0}
.skip{position:absolute;left:-99rem}
.skip:focus{position:static}
@media(max-width:40rem){th,td{padding:.3rem .35rem}.pair :is(th,td){white-space:normal}
.pair thead th{overflow-wrap:normal}}
@media print{figure,tr{break-inside:avoid}}
""".strip()
