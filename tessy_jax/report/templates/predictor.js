// Updates metrics and token marks when the threshold slider moves. Without this script the page shows the threshold in use.
const speakers = JSON.parse(document.getElementById("data").textContent);
document.querySelectorAll(".dial").forEach((dial, n) => {
  const { points, probabilities } = speakers[n];
  const tokens = dial.closest("section").querySelectorAll(".token");
  const [threshold, ...numbers] = dial.querySelectorAll("output");
  const slider = dial.querySelector("input");
  slider.hidden = false;
  slider.addEventListener("input", () => {
    const [at, ...values] = points[slider.value];
    threshold.textContent = at;
    numbers.forEach((shown, i) => {
      shown.textContent = values[i].toFixed(shown.dataset.places) + shown.dataset.unit;
    });
    tokens.forEach((token, i) => {
      if (probabilities[i] === null) return;
      token.classList.toggle("predicted-style", probabilities[i] > at);
      token.classList.toggle("predicted-capability", probabilities[i] <= at);
    });
  });
});
