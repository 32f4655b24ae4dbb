"use strict";
// What this report draws: its series, and the heat map of the devices.
(() => {
  const data = JSON.parse(document.getElementById("series").textContent);
  const { draw, format, colour, table } = Charts;
  const at = (id) => document.getElementById(id);
  const { throughput, lateness, behind, limited, outcomes, faults, devices } = data;

  draw(at("throughput"), data.hours, [
    { label: "sent", colour: "--sent", fill: "--sent-soft", values: throughput.sent_per_hour },
    { label: "limit of the hour", colour: "--limit", dash: [6, 4], values: throughput.limit_per_hour },
    { label: "limit of the day ÷ 24", colour: "--day", dash: [2, 3], values: throughput.day_limit_per_hour },
  ], { value: format.count, tick: format.compact, faults });
  draw(at("backlog"), data.fine, [
    { label: "due, not sent", colour: "--sent", fill: "--sent-soft", values: data.backlog },
  ], { value: format.count, tick: format.compact, faults });
  draw(at("limited"), data.hours, [
    { label: "group's day", fill: "--group-day", values: limited.group_day },
    { label: "group's hour", fill: "--group-hour", values: limited.group_hour },
    { label: "day quota", fill: "--day-quota", values: limited.day },
    { label: "hour quota", fill: "--hour", values: limited.hour },
    { label: "pacing", fill: "--pacing", values: limited.pacing },
    { label: "in flight", fill: "--in-flight", values: limited.in_flight },
    { label: "next pass", fill: "--pass", values: limited.pass },
    { label: "nothing due", fill: "--nothing", values: limited.nothing_due },
  ].filter(({ fill, values }) => !fill.startsWith("--group") || values.some((share) => share > 0)), { stacked: true, top: 1, value: format.share, tick: format.share });
  const above = (values) => values.map((value) => (value == null ? null : Math.max(value, 0.1)));
  draw(at("lateness"), data.hours, [
    { label: "worst", colour: "--max", values: above(lateness.max), own: lateness.max },
    { label: "99 %", colour: "--p99", values: above(lateness.p99), own: lateness.p99 },
    { label: "95 %", colour: "--p95", width: 2.5, values: above(lateness.p95), own: lateness.p95 },
    { label: "half", colour: "--p50", values: above(lateness.p50), own: lateness.p50 },
  ], { logarithmic: true, value: format.span, tick: format.unit });
  if (behind) {
    draw(at("behind"), data.hours, [
      { label: "worst", colour: "--max", values: behind.max },
      { label: "mean", colour: "--p95", fill: "--sent-soft", values: behind.mean },
    ], { value: format.span, tick: format.span });
  }
  const palette = ["--hour", "--in-flight", "--bad", "--pacing", "--day-quota", "--pass", "--p95", "--open", "--good"];
  const others = Object.keys(outcomes).filter((name) => name !== "accepted");
  if (others.length) {
    draw(at("outcomes"), data.hours, others.map((name, number) => ({
      label: name.replaceAll("_", " "), fill: palette[number % palette.length], values: outcomes[name],
    })), { stacked: true, value: format.count, tick: format.compact, faults });
  }

  // The heat map ---------------------------------------------------------------------------------------------------
  const figure = at("devices");
  const canvas = figure.querySelector(".heat canvas");
  const told = figure.querySelector(".told");
  const shows = { use: format.share, late_s: format.span, sent: format.count };
  const available = devices.healths.indexOf("available");
  let shown = "use", columns = 1, size = 8, marked = -1;

  const channels = (name) => colour(name).split(" ").map(Number);
  const mix = (low, high, share) => `rgb(${low.map((from, at) => Math.round(from + (high[at] - from) * share)).join(" ")})`;
  const most = () => devices[shown].reduce((top, value) => Math.max(top, value ?? 0), 0) || 1;

  function paint() {
    const count = devices.name.length, width = figure.querySelector(".heat").clientWidth;
    size = Math.max(6, Math.min(18, Math.floor(Math.sqrt((width * 320) / Math.max(count, 1)))));
    columns = Math.max(Math.floor(width / size), 1);
    const height = Math.max(Math.ceil(count / columns), 1) * size, scale = devicePixelRatio;
    canvas.width = width * scale;
    canvas.height = height * scale;
    canvas.style.height = height + "px";
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const low = channels("--heat-low"), high = channels("--heat-high"), top = most();
    devices[shown].forEach((value, number) => {
      const x = (number % columns) * size, y = Math.floor(number / columns) * size;
      pen.fillStyle = value == null ? colour("--rail") : mix(low, high, Math.min(value / top, 1));
      pen.fillRect(x, y, size - 1, size - 1);
      if (number === marked || devices.health[number] !== available) {
        pen.strokeStyle = colour(number === marked ? "--text" : "--hot");
        pen.lineWidth = 2.5;
        pen.strokeRect(x + 1.25, y + 1.25, size - 3.5, size - 3.5);
      }
    });
    const bar = figure.querySelector(".scale canvas").getContext("2d");
    for (let x = 0; x < 120; x++) {
      bar.fillStyle = mix(low, high, x / 119);
      bar.fillRect(x, 0, 1, 10);
    }
    figure.querySelector(".low").textContent = shows[shown](0);
    figure.querySelector(".high").textContent = shows[shown](top);
  }

  const row = (number) => [
    devices.name[number], format.count(devices.sent[number]), format.share(devices.use[number]),
    format.span(devices.late_s[number]), devices.healths[devices.health[number]],
  ];

  function mark(number) {
    if (number === marked || number < 0 || number >= devices.name.length) return;
    marked = number;
    const [name, sent, use, late, health] = row(number);
    told.textContent = `${name}: ${sent} messages, ${use} of the day quotas, ${late} late on average, ${health}`;
    paint();
  }

  canvas.addEventListener("pointermove", (event) => {
    const column = Math.floor(event.offsetX / size);
    if (column < columns) mark(Math.floor(event.offsetY / size) * columns + column);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (!step) return;
    event.preventDefault();
    mark(marked < 0 ? 0 : marked + step);
  });
  figure.querySelectorAll(".choice button").forEach((button, _, all) =>
    button.addEventListener("click", () => {
      shown = button.dataset.of;
      all.forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
      paint();
    }),
  );
  table(figure.querySelector("details"), ["device", "messages", "use", "mean lateness", "health"], () =>
    devices.name.map((_, number) => row(number)),
  );
  paint();

  let waiting = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => { Charts.fit(); paint(); });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { Charts.again(); paint(); });
})();
