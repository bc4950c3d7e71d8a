(() => {
  "use strict";
  const TOO_SOON = 250; // milliseconds after a change of screen in which a press is a slip
  const study = JSON.parse(document.getElementById("study").textContent);
  const asked = study.comparisons;
  const shelf = "sefi-study-" + study.study;
  const part = (id) => document.getElementById(id);
  let state = restored() ?? fresh();
  let shownAt = 0;

  function fresh() {
    const bytes = crypto.getRandomValues(new Uint8Array(8));
    return { rater: Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join(""), place: 0, answers: [] };
  }

  // A browser may refuse storage, for a file or always; then a reload begins again.
  function restored() {
    try {
      const saved = JSON.parse(localStorage.getItem(shelf));
      const fits = saved.answers.every((a, n) => a.comparison === asked[n].name && a.order.includes(a.chosen));
      return fits && saved.place <= saved.answers.length && /^[0-9a-f]{16}$/.test(saved.rater) ? saved : null;
    } catch { return null; }
  }

  function keep() {
    try { localStorage.setItem(shelf, JSON.stringify(state)); } catch { /* goes on without */ }
  }

  function screen(name) {
    for (const id of ["welcome", "asking", "thanks"]) part(id).hidden = id !== name;
    part("progress").hidden = name === "welcome";
  }

  function makeImage(number, text) {
    const image = document.createElement("img");
    image.src = study.pictures[number];
    image.alt = text;
    image.draggable = false;
    return image;
  }

  function choice(shown, number, count, chosen) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "choice";
    button.setAttribute("aria-keyshortcuts", String(number));
    button.setAttribute("aria-pressed", String(shown.code === chosen));
    const digit = document.createElement("span");
    digit.textContent = String(number);
    digit.setAttribute("aria-hidden", "true");
    button.append(makeImage(shown.picture, `Image ${number} of ${count}`), digit);
    button.addEventListener("click", () => choose(shown.code));
    return button;
  }

  function showProgress() {
    const done = Math.min(state.place + 1, asked.length);
    part("count").textContent = state.place < asked.length ? `${done} of ${asked.length}` : "All answered";
    part("bar").value = state.place;
  }

  function show() {
    keep();
    showProgress();
    if (state.place >= asked.length) return finish();
    const one = asked[state.place];
    screen("asking");
    part("question").textContent = study.questions[one.question];
    part("prompt").textContent = one.prompt ?? "";
    part("prompt").hidden = one.prompt === null;
    part("photos").replaceChildren(...one.photos.map((n) => makeImage(n, "The photo")));
    part("photo-label").textContent = one.photos.length > 1 ? "The photos" : "The photo";
    part("reference").hidden = one.photos.length === 0;
    const chosen = state.answers[state.place]?.chosen;
    const count = one.shown.length;
    part("choices").dataset.count = String(count);
    part("choices").replaceChildren(...one.shown.map((s, n) => choice(s, n + 1, count, chosen)));
    part("range").textContent = `1 to ${count}`;
    part("back").disabled = state.place === 0;
    part("next").hidden = chosen === undefined;
    part("question").focus({ preventScroll: true });
    window.scrollTo(0, 0);
    shownAt = performance.now();
  }

  function choose(code) {
    const milliseconds = Math.round(performance.now() - shownAt);
    const one = asked[state.place];
    if (milliseconds < TOO_SOON || !one) return;
    state.answers[state.place] = {
      question: one.question,
      comparison: one.name,
      order: one.shown.map((s) => s.code),
      chosen: code,
      milliseconds,
    };
    move(1);
  }

  function move(step) {
    state.place = Math.max(0, Math.min(state.place + step, state.answers.length));
    show();
  }

  function finish() {
    screen("thanks");
    part("thanks-title").focus({ preventScroll: true });
  }

  function save() {
    const { rater, answers } = state;
    const file = { schema: 1, study: study.study, rater, answers, key: study.key };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(file, null, 1) + "\n"], { type: "application/json" }));
    link.download = "answers.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    part("saved").hidden = part("other").hidden = false; // nothing is deleted before it is saved
  }

  function again() {
    state = fresh();
    part("saved").hidden = part("other").hidden = true;
    welcome();
  }

  function welcome() {
    keep();
    const begun = state.answers.length;
    screen("welcome");
    part("begin").textContent = begun ? `Go on (${begun} of ${asked.length} answered)` : "I agree; begin";
    part("again").hidden = begun === 0;
    part("begin").focus({ preventScroll: true });
  }

  function pressed(event) {
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Backspace" && part("welcome").hidden && state.place > 0) {
      event.preventDefault();
      move(-1);
    } else if (!part("asking").hidden && /^[1-9]$/.test(event.key)) {
      const shown = asked[state.place].shown[Number(event.key) - 1];
      if (shown) choose(shown.code);
    }
  }

  part("begin").addEventListener("click", show);
  part("back").addEventListener("click", () => move(-1));
  part("next").addEventListener("click", () => move(1));
  part("save").addEventListener("click", save);
  part("revise").addEventListener("click", () => move(-1));
  part("again").addEventListener("click", again);
  part("other").addEventListener("click", again);
  document.addEventListener("keydown", pressed);
  welcome();
})();
