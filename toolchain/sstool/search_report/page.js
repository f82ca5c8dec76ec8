(function () {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const config = {
    responsive: true,
    displayModeBar: false,
  };
  // On a touch screen, dragging scrolls the page, so it must not zoom a figure.
  const touch = window.matchMedia("(pointer: coarse)").matches;

  for (const [id, figure] of Object.entries(figures)) {
    if (touch) figure.layout.dragmode = false;
    Plotly.newPlot(id, figure.data, figure.layout, config);
  }

  // Plotly resizes figures after a delay, which would be too late for printing.
  window.addEventListener("beforeprint", () => {
    document.body.classList.add("printing");
    for (const id of Object.keys(figures)) Plotly.relayout(id, { width: document.getElementById(id).clientWidth });
  });
  window.addEventListener("afterprint", () => {
    document.body.classList.remove("printing");
    for (const id of Object.keys(figures)) Plotly.relayout(id, { width: null, autosize: true });
  });
})();
