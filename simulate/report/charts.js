"use strict";
// Charts over virtual time, with a table of the same figures for those who cannot see them.
const Charts = (() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const fine = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
  const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
  const format = {
    count: (value) => (value == null ? "–" : whole.format(value)),
    share: (value) => (value == null ? "–" : fine.format(100 * value) + " %"),
    span: (value) => {
      if (value == null) return "–";
      if (value >= 5400) return fine.format(value / 3600) + " h";
      return value >= 90 ? fine.format(value / 60) + " min" : fine.format(value) + " s";
    },
    unit: (value) => {
      const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"]].find(([size]) => value >= size) ?? [1, "s"];
      return fine.format(value / size) + " " + unit;
    },
    compact: (value) => short.format(value),
  };
  const moment = (second) => {
    const [date, time] = new Date(Math.round(second) * 1000).toISOString().split("T");
    return date + " " + time.slice(0, 5);
  };
  const times = (axis) => Array.from({ length: axis.count }, (_, at) => axis.start + at * axis.width);
  const drawn = [];

  // Where a logarithmic axis of seconds has its lines.
  const steps = [0.1, 1, 10, 60, 600, 3600, 36000, 86400, 864000, 8640000];

  const axes = (tick, splits) => {
    const line = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    const font = "12px system-ui, sans-serif";
    return [
      { ...line, font, grid: { show: false }, size: 36, space: 70, values: timeLabels },
      { ...line, font, size: 58, ...splits, values: (_, splits) => splits.map((value) => (value == null ? "" : tick(value))) },
    ];
  };

  function timeLabels(_, splits) {
    let day = "";
    return splits.map((second) => {
      const at = new Date(second * 1000);
      const date = at.toLocaleDateString("en-GB", { weekday: "short", day: "numeric", month: "short", timeZone: "UTC" });
      const clock = at.toISOString().slice(11, 16);
      const text = date === day ? clock : clock === "00:00" ? date : date + "\n" + clock;
      day = date;
      return text;
    });
  }

  // A bucket is drawn as wide as it lasts, by two points; the last one ends with the run.
  const closed = (axis, columns) => [
    times(axis).flatMap((second) => [second, Math.min(second + axis.width - 0.001, axis.end)]),
    ...columns.map((column) => column.flatMap((value) => [value, value])),
  ];

  const marks = (faults) => ({
    hooks: {
      draw: (u) => {
        u.ctx.save();
        u.ctx.strokeStyle = colour("--bad");
        u.ctx.lineWidth = 2 * devicePixelRatio;
        u.ctx.setLineDash([]);
        for (const [second] of faults) {
          const x = Math.round(u.valToPos(second, "x", true));
          u.ctx.beginPath();
          u.ctx.moveTo(x, u.bbox.top);
          u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
          u.ctx.stroke();
        }
        u.ctx.restore();
      },
    },
  });

  // lines: [{ label, colour, fill, dash, values, stepped }]; stacked: values add up, and the legend shows each one's own.
  function draw(figure, axis, lines, options) {
    const holder = figure.querySelector(".plot");
    holder.hidden = false;
    const paint = () => {
      const shown = options.stacked ? stacked(lines) : lines;
      const plot = new uPlot(
        {
          width: holder.clientWidth,
          height: innerWidth < 640 ? 200 : 240,
          tzDate: (second) => uPlot.tzDate(new Date(second * 1e3), "Etc/UTC"),
          plugins: options.faults && options.faults.length ? [marks(options.faults)] : [],
          scales: {
            x: { time: true },
            y: options.logarithmic
              ? { distr: 3, range: (u, low, high) => [0.1, steps.find((step) => step >= high && step > 1) ?? high] }
              : { range: (u, low, high) => [0, options.top ?? Math.max(high * 1.05, options.least ?? 1)] },
          },
          padding: [10, 28, 0, 0],
          axes: axes(options.tick, options.logarithmic && { splits: (u, at, low, high) => steps.filter((step) => step <= high), filter: (u, splits) => splits }),
          cursor: { y: false, drag: { x: true, y: false } },
          series: [
            { label: "time", value: (u, second) => (second == null ? "" : moment(second)) },
            ...shown.map((line) => ({
              label: line.label,
              stroke: line.fill && options.stacked ? colour(line.fill) : colour(line.colour),
              fill: line.fill && colour(line.fill),
              width: options.stacked ? 0 : line.width ?? 1.5,
              dash: line.dash,
              points: { show: false },
              value: (u, value, series, at) => (at == null ? "" : options.value(line.own[at >> 1])),
            })),
          ],
        },
        closed(axis, shown.map((line) => line.values)),
        holder,
      );
      return plot;
    };
    for (const line of lines) line.own = line.own ?? line.values;
    drawn.push({ holder, paint, plot: paint() });
    table(figure.querySelector("details"), ["from (UTC)", ...lines.map((line) => line.label)], () =>
      times(axis).map((second, at) => [moment(second), ...lines.map((line) => options.value(line.own[at]))]),
    );
  }

  // The top of each layer, the highest layer first, so that lower ones are drawn over it.
  function stacked(lines) {
    const sum = new Array(lines[0].values.length).fill(0);
    return lines
      .map((line) => ({ ...line, values: line.values.map((value, at) => (sum[at] += value)) }))
      .reverse();
  }

  function table(details, columns, rows) {
    details.hidden = false;
    details.addEventListener(
      "toggle",
      () => {
        const element = document.createElement("table");
        const cell = (row, text, kind, scope) => {
          const made = row.appendChild(document.createElement(kind));
          made.textContent = text;
          if (scope) made.scope = scope;
        };
        const head = element.createTHead().insertRow();
        columns.forEach((text) => cell(head, text, "th", "col"));
        const body = element.createTBody();
        for (const values of rows()) {
          const row = body.insertRow();
          values.forEach((text, at) => cell(row, text, at ? "td" : "th", at ? "" : "row"));
        }
        details.querySelector(".scroll").replaceChildren(element);
      },
      { once: true },
    );
  }

  const again = () => {
    for (const chart of drawn) {
      chart.plot.destroy();
      chart.plot = chart.paint();
    }
  };
  const fit = () => {
    for (const { plot, holder } of drawn) plot.setSize({ width: holder.clientWidth, height: plot.height });
  };
  return { again, colour, draw, fit, format, table, get count() { return drawn.length; } };
})();
