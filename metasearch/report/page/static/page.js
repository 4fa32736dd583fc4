// Draws the figures that the page carries as data. What comes from users reaches the page by textContent alone.
"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const MOST_NUMBERS = 1000, PRINTED_WIDTH = 640, PRINTED_PIXELS = 3;
  const charts = new Map();
  let printing = false;

  const color = (key) => data.colors[key][dark.matches && !printing ? 1 : 0];
  const ink = () => color("ink");
  const line = () => (dark.matches && !printing ? "#343a42" : "#d8dde3");
  const ground = () => (dark.matches && !printing ? "#14171b" : "#ffffff");
  const rowOf = data.configurations.map((known) => new Map(known.numbers.map((number, row) => [number, row])));

  // ---- numbers as people read them
  function scaled(value, unit) {
    const size = Math.abs(value);
    for (const [factor, prefix] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (size >= factor) return `${+(value / factor).toPrecision(3)} ${prefix}${unit}`;
    }
    return `${+value.toPrecision(3)} ${unit}`.trim();
  }
  function text(value, unit) {
    if (value === null || value === undefined) return "";
    if (typeof value !== "number") return String(value);
    if (unit === "count") return scaled(value, "");
    if (unit === "bytes") return scaled(value, "B");
    if (unit === "ms") return `${+value.toPrecision(3)} ms`;
    if (unit === "seconds") return `${+value.toPrecision(3)} s`;
    return String(+value.toPrecision(5));
  }
  const tick = (unit) => (value) => (unit === "share" ? String(+value.toPrecision(4)) : text(value, unit));

  // ---- axes
  function extent(figure, side) {
    let low = Infinity, high = -Infinity;
    const take = (value) => {
      if (typeof value === "number") { low = Math.min(low, value); high = Math.max(high, value); }
    };
    for (const series of figure.series || []) {
      (series[side] || []).forEach(take);
      if (side === "x") for (const ends of [series.end, series.low, series.high]) (ends || []).forEach(take);
    }
    for (const level of figure.levels || []) if (level.axis === side) take(level.value);
    return [low, high];
  }
  function logTicks(low, high) {
    const found = [];
    const steps = Math.log10(high / low) > 2.2 ? [1] : [1, 2, 5];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const step of steps) {
        const value = step * 10 ** power;
        if (value >= low && value <= high) found.push(+value.toPrecision(3));
      }
    }
    return found.length > 1 ? found : [+low.toPrecision(2), +high.toPrecision(2)];
  }
  function axisOption(axis, side, figure) {
    const bars = (figure.series || []).some((series) => series.mark === "bars" || series.mark === "spans");
    const option = {
      name: axis.label || "",
      nameLocation: side === "x" ? "middle" : "end",
      nameTextStyle: { color: color("grey"), fontSize: 12, align: side === "x" ? "center" : "left" },
      nameGap: side === "x" ? 28 : 12,
      axisLine: { lineStyle: { color: color("grey") } },
      axisLabel: { color: ink(), hideOverlap: true, formatter: tick(axis.unit) },
      splitLine: { lineStyle: { color: line() } },
      triggerEvent: false,
    };
    if (axis.scale === "category") {
      const cells = (figure.series || []).some((series) => series.mark === "cells");
      Object.assign(option, { type: "category", data: axis.categories || [], splitLine: { show: false } });
      option.inverse = side === "y";
      if (side === "y") option.nameLocation = "start";
      option.axisLabel = { color: ink(), width: 120, overflow: "truncate", hideOverlap: true };
      if (cells && side === "x") option.axisLabel = { color: ink(), rotate: 45, width: 70, overflow: "truncate", interval: 0 };
      if (cells && side === "x") option.nameGap = 26 + 5 * Math.min(9, Math.max(...option.data.map((name) => name.length)));
      if (side === "x" && !cells) option.jitter = 24;
      return option;
    }
    const [low, high] = extent(figure, side);
    if (axis.scale === "log" && low > 0 && high > low) {
      const room = (high / low) ** 0.04;
      const ticks = logTicks(low / room, high * room);
      Object.assign(option, { type: "log", min: low / room, max: high * room });
      Object.assign(option.axisLabel, { customValues: ticks });
      option.axisTick = { customValues: ticks };
      option.splitLine = { show: false };
      return option;
    }
    option.type = "value";
    option.scale = !bars;
    if (bars && side === "x") { option.min = 0; option.max = high > 0 ? undefined : 1; }
    if (axis.unit === "share" && !bars && high > 0.9 && high <= 1) option.max = 1;
    const lines = (figure.series || []).every((series) => series.mark === "line" || series.mark === "steps");
    if (lines && side === "x" && high > low) { option.min = low > 0 && low < high / 4 ? 0 : low; option.max = high; }
    return option;
  }

  // ---- series
  const SYMBOLS = { circle: "circle", triangle: "triangle", rect: "rect", diamond: "diamond",
    cross: "path://M-5,-3 L-3,-5 L0,-2 L3,-5 L5,-3 L2,0 L5,3 L3,5 L0,2 L-3,5 L-5,3 L-2,0 Z" };
  function look(series) {
    const style = data.styles[series.style];
    return Object.assign({}, style, { color: color(style.color), symbol: SYMBOLS[style.symbol] });
  }
  function seriesOptions(series, place, figure) {
    const style = look(series);
    const base = { progressive: 0, name: series.name, itemStyle: { color: style.color, opacity: style.opacity }, id: `s${place}` };
    const points = () => series.x.map((x, index) => [x, series.y[index]]);
    if (series.mark === "points") {
      const found = [Object.assign(base, { type: "scatter", data: points(), symbol: style.symbol, symbolSize: style.size,
        z: series.style === "trial" || series.style === "infeasible" ? 2 : 3, emphasis: { scale: 1.4 } })];
      if (series.low) found.push(errorBars(series, style, place));
      return found;
    }
    if (series.mark === "line" || series.mark === "steps") {
      const few = series.x.length <= 40 && !series.trials;
      return [Object.assign(base, { type: "line", data: points(), step: series.mark === "steps" ? "end" : false,
        symbol: few ? style.symbol : "circle", showSymbol: few, symbolSize: few ? 6 : 8, triggerLineEvent: true,
        lineStyle: { color: style.color, type: style.dash, width: style.width, opacity: style.opacity },
        z: series.style === "faint" ? 1 : 2 })];
    }
    if (series.mark === "bars") {
      return [Object.assign(base, { type: "bar", data: points(), barMaxWidth: 22 })];
    }
    if (series.mark === "spans") {
      return [Object.assign(base, { type: "custom", encode: { x: [0, 2], y: 1 }, clip: true,
        data: series.x.map((x, index) => [x, series.y[index], series.end[index]]),
        renderItem: (params, api) => {
          const start = api.coord([api.value(0), api.value(1)]), end = api.coord([api.value(2), api.value(1)]);
          const height = Math.min(api.size([0, 1])[1] * 0.7, 26);
          return { type: "rect", style: { fill: style.color, opacity: style.opacity, stroke: ground(), lineWidth: 0.5 },
            shape: { x: start[0], y: start[1] - height / 2, width: Math.max(end[0] - start[0], 1), height } };
        } })];
    }
    // not ECharts' own heat map, which draws in a later frame: too late for a printer
    const shares = series.value || [], texts = (figure.x.categories || []).length <= 20;
    return [Object.assign(base, { type: "custom", encode: { x: 0, y: 1 }, clip: true,
      data: series.x.map((x, index) => [x, series.y[index]]),
      renderItem: (params, api) => {
        const share = shares[params.dataIndex], middle = api.coord([api.value(0), api.value(1)]);
        const [width, height] = api.size([1, 1]);
        const fill = mixed(ground(), color("blue"), 0.08 + 0.92 * share);
        return { type: "rect", style: { fill }, shape: { x: middle[0] - width / 2, y: middle[1] - height / 2, width, height },
          textConfig: { position: "inside" },
          textContent: texts ? { type: "text", style: { text: series.text[params.dataIndex], fontSize: 11,
            fill: share > 0.5 ? (dark.matches && !printing ? "#000" : "#fff") : ink() } } : undefined };
      } })];
  }
  function mixed(from, to, share) {
    const part = (text, at) => parseInt(text.slice(at, at + 2), 16);
    return `rgb(${[1, 3, 5].map((at) => Math.round(part(from, at) + share * (part(to, at) - part(from, at)))).join(",")})`;
  }
  function errorBars(series, style, place) {
    return { name: series.name, id: `e${place}`, type: "custom", silent: true, z: 3, encode: { x: [0, 1], y: 2 },
      data: series.x.map((x, index) => [series.low[index], series.high[index], series.y[index]]),
      renderItem: (params, api) => {
        const low = api.coord([api.value(0), api.value(2)]), high = api.coord([api.value(1), api.value(2)]);
        return { type: "line", shape: { x1: low[0], y1: low[1], x2: high[0], y2: high[1] }, style: { stroke: style.color, lineWidth: 2 } };
      } };
  }
  function levelOption(level, place) {
    const style = data.styles[level.style];
    const where = level.axis === "x" ? { xAxis: level.value } : { yAxis: level.value };
    return { name: level.name, id: `l${place}`, type: "line", data: [], symbol: "none", itemStyle: { color: color(style.color) },
      lineStyle: { color: color(style.color), type: style.dash },
      markLine: { symbol: "none", silent: true, data: [where], lineStyle: { color: color(style.color), type: style.dash, width: 2 },
        label: { formatter: () => level.name, color: ink(), position: "insideEndTop", backgroundColor: ground(), padding: 2 } } };
  }

  // ---- what hovering says
  function element(name, content, className) {
    const found = document.createElement(name);
    if (content !== undefined) found.textContent = content;
    if (className) found.className = className;
    return found;
  }
  function said(figure, series, index) {
    const rows = [];
    const number = series.trials ? series.trials[index] : undefined;
    const known = number === undefined ? undefined : data.configurations[series.study || 0];
    const row = known ? rowOf[series.study || 0].get(number) : undefined;
    let title = number === undefined ? series.name : `trial ${number}`;
    if (known && data.configurations.length > 1) title += ` of ${known.study}`;
    if (series.mark === "cells") {
      return [`${series.text[index]} of ${series.y[index]}`, [["taken for", series.x[index]], ["share of its class", text(series.value[index])]]];
    }
    if (row === undefined || series.mark === "line") {
      if (figure.y.label || series.mark !== "bars") rows.push([figure.y.label, text(series.y[index], figure.y.unit)]);
      else title = String(series.y[index]);
      rows.push([figure.x.label, text(series.x[index], figure.x.unit)]);
    }
    if (series.low) rows.push([figure.x.label, `${text(series.x[index], figure.x.unit)} (${text(series.low[index])} to ${text(series.high[index], figure.x.unit)})`]);
    if (series.end) rows.push(["from, to (minutes)", `${text(series.x[index])}, ${text(series.end[index])}`], ["worker", series.y[index]]);
    if (series.text && series.text[index]) rows.push([series.text[index], ""]);
    if (row !== undefined) {
      known.names.forEach((name, column) => {
        const value = known.columns[column][row];
        if (value !== null && value !== undefined) rows.push([name, text(value)]);
      });
    }
    if (number !== undefined && series.mark === "points") title += series.name === "trials" ? "" : `, ${series.name}`;
    return [title, rows];
  }
  function tip(title, rows) {
    const found = element("div", undefined, "tip");
    found.append(element("b", title));
    const table = element("table");
    for (const [name, value] of rows) {
      const row = element("tr");
      row.append(element("th", name), element("td", value));
      table.append(row);
    }
    found.append(table);
    return found;
  }
  const plain = (title, rows) => `${title}: ${rows.map((row) => row.join(" ")).join(", ")}`;

  // ---- figures
  function figureOption(figure, width) {
    const options = [], origin = [];
    (figure.series || []).forEach((series, place) => {
      for (const option of seriesOptions(series, place, figure)) { options.push(option); origin.push(series); }
    });
    (figure.levels || []).forEach((level, place) => { options.push(levelOption(level, place)); origin.push(null); });
    const names = [...new Set([...(figure.series || []), ...(figure.levels || [])].map((one) => one.name))];
    const legend = names.length > 1;
    return [{
      animation: false,
      textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: ink() },
      legend: legend ? { type: "scroll", top: 0, left: 0, data: names, textStyle: { color: ink() },
        pageTextStyle: { color: ink() }, pageIconColor: ink(), inactiveColor: color("grey"),
        itemGap: 14, itemWidth: (figure.series || []).some((series) => series.mark === "points") ? 12 : 22, itemHeight: 12 } : undefined,
      grid: { top: legend ? 32 : 6, left: 8, right: width < 500 ? 16 : 28, bottom: 8,
        outerBoundsMode: "same", outerBoundsContain: "all" },
      xAxis: axisOption(figure.x, "x", figure),
      yAxis: axisOption(figure.y, "y", figure),
      tooltip: tooltip((item) => {
        const series = origin[item.seriesIndex];
        return series && item.dataIndex !== undefined ? said(figure, series, item.dataIndex) : null;
      }),
      series: options,
    }, origin];
  }
  function tooltip(find) {
    return { trigger: "item", confine: true, transitionDuration: 0, backgroundColor: ground(), borderColor: line(),
      textStyle: { color: ink() }, formatter: (item) => {
        const found = find(item);
        return found ? tip(found[0], found[1]) : element("div");
      } };
  }
  function parallelOption(figure) {
    const lines = (front) => figure.rows.map((row, index) => [row, index]).filter(([, index]) => figure.front[index] === front);
    const series = (name, front, style) => {
      const own = lines(front);
      return [{ name, type: "parallel", progressive: 0, data: own.map(([row]) => row.map((cell) => (cell === undefined || cell === null ? "-" : cell))),
        inactiveOpacity: 0.03, lineStyle: { color: color(style.color), opacity: style.opacity, width: style.width }, z: front ? 3 : 2 },
      own.map(([, index]) => index)];
    };
    const [others, otherRows] = series("trials", false, { color: "grey", opacity: 0.4, width: 1 });
    const [front, frontRows] = series("front", true, { color: "blue", opacity: Math.max(0.2, Math.min(0.85, 25 / lines(true).length)), width: 2 });
    const rows = [otherRows, frontRows];
    return [{
      animation: false,
      textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: ink() },
      legend: { top: 0, left: 0, itemWidth: 22, textStyle: { color: ink() }, inactiveColor: color("grey") },
      parallel: { left: 44, right: 60, top: 92, bottom: 16 },
      parallelAxis: figure.axes.map((axis, dim) => {
        const values = figure.rows.map((row) => row[dim]).filter((value) => typeof value === "number");
        const low = Math.min(...values), high = Math.max(...values);
        const log = axis.scale === "log" && low > 0 && high > low;
        const ticks = log ? logTicks(low, high) : undefined;
        const whole = values.every(Number.isInteger);
        return { dim, name: axis.label, splitNumber: 4, minInterval: whole ? 1 : undefined, nameRotate: 28, nameGap: 14, nameTextStyle: { color: ink(), fontSize: 11, align: "left" },
          nameTruncate: { maxWidth: 150 }, type: axis.scale === "category" ? "category" : log ? "log" : "value",
          data: axis.scale === "category" ? axis.categories : undefined, scale: true,
          min: log ? low : undefined, max: log ? high : undefined,
          axisLabel: { color: ink(), fontSize: 10, formatter: axis.scale === "category" ? undefined : tick(axis.unit),
            customValues: ticks, width: 70, overflow: "truncate" },
          axisTick: { customValues: ticks },
          axisLine: { lineStyle: { color: color("grey") } } };
      }),
      tooltip: tooltip((item) => {
        const index = rows[item.seriesIndex][item.dataIndex];
        const known = figure.axes.map((axis, dim) => [axis.label, text(figure.rows[index][dim], axis.unit)]);
        return [`trial ${figure.trials[index]}`, known];
      }),
      series: [others, front],
    }, []];
  }

  // ---- drawing
  function fit(box, figure) {
    if (figure.kind === "parallel") box.style.minWidth = printing ? "" : `${figure.axes.length * 74 + 100}px`;
    const categories = figure.y && figure.y.scale === "category" ? figure.y.categories.length : 0;
    const cells = categories && (figure.series || []).some((series) => series.mark === "cells");
    if (categories) box.style.height = `${cells ? Math.max(300, 26 * categories + 110) : Math.max(150, 30 * categories + 100)}px`;
  }
  function draw(box) {
    const figure = data.figures[box.dataset.figure];
    const previous = charts.get(box);
    if (previous) previous.chart.dispose();
    fit(box, figure);
    const half = !figure.wide && !box.closest(".columns");
    const size = printing ? { width: half ? PRINTED_WIDTH / 2 - 36 : PRINTED_WIDTH - 24, devicePixelRatio: PRINTED_PIXELS,
      height: parseInt(box.style.height, 10) || (half ? 210 : 300) } : undefined;
    const chart = echarts.init(box, null, size);
    const width = size ? size.width : box.clientWidth;
    const [option, origin] = figure.kind === "parallel" ? parallelOption(figure) : figureOption(figure, width);
    chart.setOption(option);
    charts.set(box, { chart, figure, origin, place: -1 });
    box.dataset.drawn = String((option.series || []).length);
  }
  function drawAll() { for (const box of boxes) draw(box); }

  // ---- by keyboard: arrows walk over the marks of the last series, which is the front where there is one
  function walk(event) {
    const box = event.currentTarget, known = charts.get(box);
    if (!known || !known.origin.length) return;
    if (event.key === "Escape") { known.chart.dispatchAction({ type: "hideTip" }); return; }
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    let seriesIndex = known.origin.length - 1;
    while (seriesIndex > 0 && !(known.origin[seriesIndex] && known.origin[seriesIndex].x.length > 1)) seriesIndex--;
    const series = known.origin[seriesIndex];
    if (!series) return;
    known.place = (known.place + step + series.x.length) % series.x.length;
    known.chart.dispatchAction({ type: "showTip", seriesIndex, dataIndex: known.place });
    document.getElementById("said").textContent = plain(...said(known.figure, series, known.place));
  }

  // ---- the numbers of a figure, made when they are asked for
  function numbers(details) {
    const place = details.querySelector(".scroll");
    if (!details.open || place.firstChild) return;
    const figure = data.figures[details.dataset.numbers];
    const parallel = figure.kind === "parallel";
    const headings = parallel ? ["trial", ...figure.axes.map((axis) => axis.label)]
      : ["series", figure.series.some((series) => series.trials) ? "trial" : "", figure.x.label || "value", figure.y.label || "name"];
    const rows = parallel ? figure.rows.map((row, index) => [figure.trials[index], ...row])
      : figure.series.slice().reverse().flatMap((series) => series.x.map((x, index) =>
        [series.name, series.trials ? series.trials[index] : "", text(x, figure.x.unit), series.text && series.mark === "cells" ? `${series.y[index]}: ${series.text[index]}` : text(series.y[index], figure.y.unit)]));
    const table = element("table"), head = element("tr"), body = element("tbody"), top = element("thead");
    if (rows.length > MOST_NUMBERS) table.append(element("caption", `the first ${MOST_NUMBERS} of ${rows.length}`));
    for (const heading of headings) { const cell = element("th", heading); cell.scope = "col"; head.append(cell); }
    top.append(head);
    for (const row of rows.slice(0, MOST_NUMBERS)) {
      const found = element("tr");
      for (const cell of row) found.append(element("td", text(cell)));
      body.append(found);
    }
    table.append(top, body);
    place.tabIndex = 0;
    place.append(table);
  }

  // ---- while the search runs: the page reloads itself, and shows what it showed
  const renewEvery = 1000 * Number(document.documentElement.dataset.renewS || 0), READING = 3000;
  const foldable = () => [...document.querySelectorAll("details")];
  let touched = 0;
  function renew() {
    if (printing || Date.now() - touched < READING) { setTimeout(renew, 1000); return; }  // a tip is being read
    const wide = [...document.querySelectorAll(".scroll")].map((one) => [one.scrollLeft, one.scrollTop]);
    history.replaceState({ place: [scrollX, scrollY], open: foldable().map((details) => details.open), wide }, "");
    location.reload();
  }
  function putBack() {  // once all figures have their heights
    const kept = history.state;
    if (kept && kept.open) {
      foldable().forEach((details, index) => {
        details.open = Boolean(kept.open[index]);
        if (details.dataset.numbers) numbers(details);
      });
      document.querySelectorAll(".scroll").forEach((one, index) => one.scrollTo(...(kept.wide[index] || [0, 0])));
      window.scrollTo(...kept.place);
      history.replaceState(null, "");
    }
    if (renewEvery) setTimeout(renew, renewEvery);
  }
  for (const kind of ["pointermove", "keydown"]) document.addEventListener(kind, () => { touched = Date.now(); }, { passive: true });

  const boxes = [...document.querySelectorAll("[data-figure]")];
  for (const box of boxes) box.addEventListener("keydown", walk);
  for (const details of document.querySelectorAll("[data-numbers]")) details.addEventListener("toggle", () => numbers(details));
  const watcher = new ResizeObserver((entries) => {
    for (const entry of entries) {
      const known = charts.get(entry.target);
      if (known && !printing) known.chart.resize();
    }
  });
  let next = 0;
  function drawNext() {  // one after the other, so that the page answers meanwhile
    if (next < boxes.length) { setTimeout(drawNext, 0); next += 1; watcher.observe(boxes[next - 1]); draw(boxes[next - 1]); }
    else { document.documentElement.dataset.ready = "true"; putBack(); }
  }
  drawNext();
  dark.addEventListener("change", drawAll);
  window.addEventListener("beforeprint", () => { printing = true; drawAll(); });
  window.addEventListener("afterprint", () => { printing = false; drawAll(); });
})();
