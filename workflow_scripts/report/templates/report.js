// The explorer. Text enters the page through textContent alone, so no corpus can run anything.
"use strict";
(() => {
  const TESTS_SHOWN = 60;
  const EXAMPLES_SHOWN = 8;
  const SAME_CHARACTERS = 200;
  const SIGNS = ["helpful", "harmful"];
  const NO_LABEL = -1;

  const { element, number, passage, scoreText } = blocks;
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("explorer-data").textContent);

  spreadPointLabels();
  addEventListener("resize", spreadPointLabels);
  if (!data.evaluations.length) return;

  const state = { evaluation: 0, test: 0, method: 0, beside: -1, sign: "both", label: "all", tests: TESTS_SHOWN };
  const searchable = new Map();

  const field = {};
  for (const id of ["evaluation", "search", "method", "beside", "sign", "label"]) field[id] = byId(id);

  // ---- building blocks

  function fill(select, options, chosen) {
    select.replaceChildren(...options.map(([value, text]) => element("option", { value, text })));
    select.value = String(chosen);
  }

  const evaluation = () => data.evaluations[state.evaluation];
  const methodAt = (place) => evaluation().methods[place];

  function example(corpus, place) {
    const [exampleId, sourceRow, label, prompt, response] = data.corpora[corpus][place];
    const file = data.files[corpus]?.[place];
    return { place, exampleId, sourceRow, where: file ? `row ${sourceRow} of ${file}` : `row ${sourceRow}`, label, prompt: textAt(prompt), response: textAt(response) };
  }

  function textAt(place) {
    const entry = data.texts[place];
    return typeof entry === "string" ? { shown: entry, length: 0 } : { shown: entry[0], length: entry[1] };
  }

  const testExample = (place) => example(evaluation().test, evaluation().tests[place]);
  const labelText = (label) => (label === NO_LABEL ? "no label" : data.labels[label]);

  // ---- the list of tests

  function words(place) {
    const key = `${state.evaluation}:${place}`;
    if (!searchable.has(key)) {
      const test = testExample(place);
      const label = test.label === NO_LABEL ? "" : data.labels[test.label];
      searchable.set(key, `${test.prompt.shown}\n${test.response.shown}\n${label}\n#${test.sourceRow}`.toLowerCase());
    }
    return searchable.get(key);
  }

  function matches() {
    const wanted = field.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = [];
    evaluation().tests.forEach((_, place) => {
      const text = words(place);
      const fits = (word) => (/^#\d+$/.test(word) ? text.endsWith(`\n${word}`) : text.includes(word));
      if (wanted.every(fits)) found.push(place);
    });
    return found;
  }

  function showTests() {
    const found = matches();
    const all = evaluation().tests.length;
    byId("found").textContent = found.length === all ? `${number(all)} test examples` : `${number(found.length)} of ${number(all)} test examples`;
    byId("tests").replaceChildren(...found.slice(0, state.tests).map(testButton));
    byId("more-tests").hidden = found.length <= state.tests;
  }

  function testButton(place) {
    const test = testExample(place);
    const button = element(
      "button",
      { type: "button", "data-test": place, "aria-current": place === state.test ? "true" : false, onclick: () => pick(place) },
      element("span", { class: "snippet", dir: "auto", text: test.prompt.shown.slice(0, 160) || test.response.shown.slice(0, 160) }),
      element("span", { class: "where" }, element("bdi", { text: labelText(test.label) }), ` · ${test.where}`),
    );
    return element("li", {}, button);
  }

  function pick(place) {
    state.test = place;
    for (const button of byId("tests").querySelectorAll("button")) {
      if (Number(button.dataset.test) === place) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    showLabels();
    showTest();
    showLists();
    if (matchMedia("(max-width: 860px)").matches) byId("test").scrollIntoView();
  }

  function moveInTests(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const buttons = [...byId("tests").querySelectorAll("button")];
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (next) {
      event.preventDefault();
      next.focus();
    }
  }

  // ---- one example

  function origin(item, corpus, sameLabel) {
    return element(
      "p",
      { class: "where" },
      element("bdi", { class: sameLabel ? "tag same" : "tag", text: labelText(item.label) }),
      sameLabel && element("span", { class: "sr", text: " (same label as the test example)" }),
      element("span", { text: ` ${corpus}, ${item.where}` }),
    );
  }

  function showTest() {
    const test = testExample(state.test);
    byId("test").replaceChildren(
      element("h3", { text: "Test example" }),
      origin(test, evaluation().test, false),
      passage("Prompt", test.prompt.shown, test.prompt.length),
      passage("Response", test.response.shown, test.response.length),
    );
  }

  // ---- ranked training examples

  function ranking(method, sign) {
    const lists = evaluation().scores[methodAt(method).key][state.test];
    const [places, scores, firsts] = lists[sign] || [[], [], []];
    return places.map((place, index) => ({ place, score: scores[index], rank: index + 1, first: firsts[index] }));
  }

  // The first of the examples that say the same, with the others.
  function folded(items) {
    const groups = new Map();
    for (const item of items) {
      if (groups.has(item.first)) groups.get(item.first).same.push(item);
      else groups.set(item.first, { ...item, same: [] });
    }
    return [...groups.values()];
  }

  function fitsLabel(place) {
    if (state.label === "all") return true;
    const label = data.corpora[evaluation().train][place][2];
    return state.label === "same" ? label === testExample(state.test).label : label === Number(state.label);
  }

  function showLists() {
    const signs = state.sign === "both" ? SIGNS : [state.sign];
    const methods = state.beside < 0 ? [state.method] : [state.method, state.beside];
    const lists = byId("lists");
    lists.replaceChildren(
      ...methods.map((method) => {
        const column = element("section", { class: "method", "aria-label": methodAt(method).name });
        if (methods.length > 1) column.append(element("h3", { text: methodAt(method).name }));
        const other = methods.length > 1 ? methods.find((one) => one !== method) : -1;
        column.append(element("div", { class: "signs" }, ...signs.map((sign) => rankedList(method, sign, other))));
        return column;
      }),
    );
    lists.classList.toggle("beside", methods.length > 1);
    showAgreement(methods, signs);
  }

  function showAgreement(methods, signs) {
    const said = methods.length < 2 ? [] : signs.map((sign) => {
      const [ours, theirs] = methods.map((method) => ranking(method, sign));
      const known = new Set(theirs.map((item) => item.place));
      return `${ours.filter((item) => known.has(item.place)).length} of ${ours.length} most ${sign} examples`;
    });
    byId("agreement").textContent = said.length ? `The two methods share ${said.join(" and ")}.` : "";
  }

  function rankedList(method, sign, other) {
    const all = ranking(method, sign);
    const kept = folded(all.filter((item) => fitsLabel(item.place)));
    const strongest = Math.max(...SIGNS.flatMap((one) => ranking(method, one).map((item) => Math.abs(item.score))), 0);
    const elsewhere = new Map(other < 0 ? [] : ranking(other, sign).map((item) => [item.place, item.rank]));
    const fitting = all.filter((item) => (sign === "helpful" ? item.score > 0 : item.score < 0)).length;
    const heading = fitting || !all.length ? `Most ${sign}` : sign === "harmful" ? "Least helpful" : "Least harmful";
    const cards = element("ol", { class: "cards" });
    const block = element(
      "section",
      { class: `ranked ${sign}`, "aria-label": `${heading}, ${methodAt(method).name}` },
      element("h4", { text: heading }),
      element("p", { class: "facts", text: meaning(sign, fitting, all.length) }),
      cards,
    );
    const add = (from, to) => cards.append(...kept.slice(from, to).map((item) => card(item, sign, strongest, elsewhere, other)));
    add(0, EXAMPLES_SHOWN);
    if (kept.length > EXAMPLES_SHOWN) {
      const more = element("button", {
        type: "button",
        class: "plain",
        text: `Show ${kept.length - EXAMPLES_SHOWN} more`,
        onclick: () => {
          add(EXAMPLES_SHOWN);
          cards.children[EXAMPLES_SHOWN].setAttribute("tabindex", "-1");
          cards.children[EXAMPLES_SHOWN].focus();
          more.remove();
        },
      });
      block.append(more);
    }
    if (all.length && !kept.length) cards.append(element("li", { class: "none", text: `None of these ${all.length} carries the label that is asked for.` }));
    return block;
  }

  function meaning(sign, fitting, all) {
    const effect = sign === "helpful" ? "lower" : "raise";
    const extreme = sign === "helpful" ? "highest" : "lowest";
    const wanted = sign === "helpful" ? "positive" : "negative";
    if (!all) return "This method kept no example for this test.";
    if (!fitting) return `No score is ${wanted}: these are merely the ${extreme} ones.`;
    const rest = fitting < all ? ` Only ${fitting} of ${all} are ${wanted}; the others are merely the ${extreme} ones.` : "";
    return `Predicted to ${effect} the loss on the test example.${rest}`;
  }

  function card(item, sign, strongest, elsewhere, other) {
    const train = evaluation().train;
    const shown = example(train, item.place);
    const same = shown.label !== NO_LABEL && shown.label === testExample(state.test).label;
    const share = strongest ? Math.abs(item.score) / strongest : 0;
    const bar = element("span", { class: "strength", "aria-hidden": "true" }, element("span"));
    bar.firstChild.style.width = `${(100 * share).toFixed(1)}%`;
    const also = elsewhere.get(item.place);
    return element(
      "li",
      { class: "card" },
      element(
        "div",
        { class: "score" },
        element("span", { class: "rank", text: item.rank }),
        element("b", { text: scoreText(item.score, strongest) }),
        bar,
        element("span", { class: "quiet", text: share >= 0.9995 ? "the strongest" : `${(100 * share).toFixed(0)} % of the strongest` }),
      ),
      origin(shown, train, same),
      also && element("p", { class: "also", text: `also ${methodAt(other).name}'s no. ${also}` }),
      passage("Prompt", shown.prompt.shown, shown.prompt.length),
      passage("Response", shown.response.shown, shown.response.length),
      item.same.length > 0 && sameExamples(item.same, strongest),
    );
  }

  function sameExamples(items, strongest) {
    const line = (item) => {
      const shown = example(evaluation().train, item.place);
      return element(
        "li",
        {},
        element("b", { text: scoreText(item.score, strongest) }),
        element("span", { class: "quiet", text: ` no. ${item.rank}, ${shown.where} ` }),
        element("bdi", { text: shown.prompt.shown.slice(0, SAME_CHARACTERS) }),
      );
    };
    const count = items.length;
    const title = `and ${count} ${count === 1 ? "example that says" : "examples that say"} the same`;
    return element("details", { class: "same" }, element("summary", { text: title }), element("ol", {}, ...items.map(line)));
  }

  // ---- choices

  function showMethods() {
    const methods = evaluation().methods.map((method, place) => [place, method.name]);
    if (state.beside === state.method) state.beside = -1;
    fill(field.method, methods, state.method);
    fill(field.beside, [[-1, "no other method"], ...methods.filter(([place]) => place !== state.method)], state.beside);
  }

  function showLabels() {
    const labels = new Set();
    for (const method of evaluation().methods.keys())
      for (const sign of SIGNS)
        for (const item of ranking(method, sign)) labels.add(data.corpora[evaluation().train][item.place][2]);
    labels.delete(NO_LABEL);
    const named = [...labels].map((label) => [label, data.labels[label]]).sort((a, b) => a[1].localeCompare(b[1]));
    if (!["all", "same"].includes(state.label) && !labels.has(Number(state.label))) state.label = "all";
    fill(field.label, [["all", "any"], ["same", "same as the test"], ...named], state.label);
  }

  function openEvaluation() {
    Object.assign(state, { test: 0, method: 0, beside: -1, tests: TESTS_SHOWN });
    field.search.value = "";
    showMethods();
    showLabels();
    showTests();
    showTest();
    showLists();
  }

  function choose(id, read, redraw) {
    field[id].addEventListener("change", () => {
      state[id] = read(field[id].value);
      redraw();
    });
  }

  choose("evaluation", Number, openEvaluation);
  choose("method", Number, () => (showMethods(), showLists()));
  choose("beside", Number, showLists);
  choose("sign", String, showLists);
  choose("label", String, showLists);
  field.search.addEventListener("input", () => {
    state.tests = TESTS_SHOWN;
    showTests();
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  field.search.addEventListener("keydown", (event) => {
    const first = byId("tests").querySelector("button");
    if (!first || !["ArrowDown", "Enter"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "Enter") pick(Number(first.dataset.test));
    else first.focus();
  });
  byId("tests").addEventListener("keydown", moveInTests);
  byId("more-tests").addEventListener("click", () => {
    const before = state.tests;
    state.tests += TESTS_SHOWN;
    showTests();
    byId("tests").querySelectorAll("button")[before]?.focus();
  });
  fill(field.evaluation, data.evaluations.map((one, place) => [place, one.name]), 0);
  field.evaluation.parentElement.hidden = data.evaluations.length < 2;
  byId("explorer-root").hidden = false;
  openEvaluation();

  // ---- figures: a label goes to the first side of its point where it hides neither a point nor a label

  function spreadPointLabels() {
    const gap = 9;
    for (const plot of document.querySelectorAll(".plot")) {
      const frame = plot.getBoundingClientRect();
      const labels = [...plot.querySelectorAll(".point-label")].map((label) => ({
        label,
        x: (parseFloat(label.style.left) / 100) * frame.width,
        y: (parseFloat(label.style.top) / 100) * frame.height,
      }));
      const taken = labels.map(({ x, y }) => ({ left: x - 6, right: x + 6, top: y - 6, bottom: y + 6 }));
      for (const { label, x, y } of labels) {
        const { width, height } = label.getBoundingClientRect();
        const centred = Math.min(Math.max(-width / 2, -x), frame.width - x - width);
        const sides = [
          [gap, -height / 2],
          [-gap - width, -height / 2],
          [centred, gap],
          [centred, -gap - height],
        ].map(([right, down]) => ({ right, down, box: { left: x + right, right: x + right + width, top: y + down, bottom: y + down + height } }));
        const free = ({ box }) =>
          box.left >= 0 && box.right <= frame.width && taken.every((other) => box.right <= other.left || other.right <= box.left || box.bottom <= other.top || other.bottom <= box.top);
        const side = sides.find(free);
        // Where a name has no place, its point says it when it is pointed at.
        label.style.visibility = side ? "" : "hidden";
        if (!side) continue;
        label.style.transform = `translate(${side.right}px, ${side.down}px)`;
        taken.push(side.box);
      }
    }
  }
})();
