"""The report: one page for one or several studies, and the same figures as files for papers.

    facts.py        what is read of a study, once
    figure.py       figures as data: axes, series, levels; what both renderers draw
    front.py progress.py parameters.py slices.py trials.py winner.py predictions.py    a study's figures and tables
    report.py       all parts of a report, in their order
    render.py       the page: templates, script and style under a content security policy
    paper.py        PNG and SVG by matplotlib

The page's charts are drawn by Apache ECharts (static/echarts.min.js, unchanged from its npm package of the version in
ECHARTS_VERSION, with its licences): 1.1 MB with parallel coordinates, timelines and heat maps, and no `eval` on any
path that a figure takes. plotly.js has no evaluation in its strict bundle alone, which is 5.2 MB.
"""
