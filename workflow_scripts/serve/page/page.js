// The page. Text enters it through textContent alone, so no corpus can run anything.
"use strict";
(() => {
  const NO_LABEL = "(no label)";
  const SIGNS = ["helpful", "harmful"];
  const WORD = /[\p{L}\p{N}_]+/gu;

  const { element, number, scoreText } = blocks;
  const byId = (id) => document.getElementById(id);
  const field = {};
  for (const id of ["prompt", "response", "contrast", "sign", "label", "top", "least", "fold", "mark", "file", "queries"]) field[id] = byId(id);
  const ask = document.querySelector(".ask-button");
  // What is shown, and the question that it answers; the file that was asked for; and a number for each request, of
  // which only the last is shown.
  const state = { answers: null, question: null, file: null, common: new Set(), request: 0 };

  // ---- building blocks

  const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

  function visible(text) {
    const picture = (letter) => (letter.charCodeAt(0) < 32 ? String.fromCharCode(0x2400 + letter.charCodeAt(0)) : "\ufffd");
    return text.replace(/\r\n/g, "\n").replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, picture);
  }

  // ---- asking

  // What the fields ask for now.
  function question() {
    const wishes = { top: Number(field.top.value), sign: field.sign.value, fold: field.fold.checked };
    if (field.label.value) wishes.label = [JSON.parse(field.label.value)];
    if (field.least.value) wishes.min_score = Number(field.least.value);
    const query = { prompt: field.prompt.value, response: field.response.value };
    if (field.contrast.value) query.contrast = field.contrast.value;
    return { file: state.file, wishes, query };
  }

  function request({ file, wishes, query }, format) {
    const asked = { ...wishes, format };
    if (file) {
      const address = new URLSearchParams({ name: file.name });
      for (const [name, value] of Object.entries(asked)) for (const one of [value].flat()) address.append(name, one);
      return fetch(`/api/file?${address}`, { method: "POST", body: file, headers: { "content-type": "application/octet-stream" } });
    }
    const body = JSON.stringify({ ...asked, queries: [query] });
    return fetch("/api/attribute", { method: "POST", body, headers: { "content-type": "application/json" } });
  }

  async function answered(asked, format) {
    const answer = await request(asked, format).catch(() => {
      throw new Error("The server doesn't answer. Is it still running?");
    });
    if (answer.ok) return answer;
    const told = await answer.json().catch(() => ({ detail: answer.statusText }));
    const place = (fault) => fault.loc.filter((part) => !["body", "query"].includes(part)).join(" ");
    throw new Error(typeof told.detail === "string" ? told.detail : told.detail.map((fault) => `${place(fault)}: ${fault.msg}`).join("\n"));
  }

  function say(error) {
    byId("error").textContent = error ? error.message : "";
    byId("error").hidden = !error;
  }

  async function show() {
    // Nothing that was asked before is shown from here on.
    const mine = ++state.request;
    const asked = question();
    if (!asked.file && !asked.query.prompt.trim()) {
      ask.disabled = false;
      byId("answers").classList.remove("waiting");
      return;
    }
    ask.disabled = true;
    byId("answers").classList.add("waiting");
    try {
      const answers = await (await answered(asked, "json")).json();
      if (mine !== state.request) return;
      say(null);
      const chosen = state.answers && state.answers.answers.length === answers.answers.length ? field.queries.value : "0";
      state.answers = answers;
      state.question = asked;
      byId("answers").hidden = false;
      fillQueries(chosen);
      showLeftOut();
      showAnswer();
    } catch (error) {
      if (mine !== state.request) return;
      say(error);
      byId("answers").hidden = true;
    } finally {
      if (mine === state.request) {
        ask.disabled = false;
        byId("answers").classList.remove("waiting");
      }
    }
  }

  async function download(format) {
    try {
      const address = URL.createObjectURL(await (await answered(state.question, format)).blob());
      const link = element("a", { href: address, download: `training_examples.${format}` });
      document.body.append(link);
      link.click();
      link.remove();
      setTimeout(() => URL.revokeObjectURL(address), 60_000);
      say(null);
    } catch (error) {
      say(error);
    }
  }

  // ---- answers

  function fillQueries(chosen) {
    const answers = state.answers.answers;
    field.queries.replaceChildren(
      ...answers.map((one, place) => element("option", { value: place, text: `${one.query}: ${visible(one.query_prompt).slice(0, 100)}` })),
    );
    field.queries.value = chosen;
    byId("queries-field").hidden = answers.length < 2;
  }

  function showLeftOut() {
    const rows = state.answers.left_out;
    const box = byId("left-out");
    box.hidden = !rows.length;
    box.querySelector("summary").textContent = `${plural(rows.length, "row")} of the file can't be used`;
    box.querySelector("ul").replaceChildren(...rows.map((row) => element("li", { text: `row ${row.query}: ${row.reason}` })));
  }

  function showAnswer() {
    const answer = state.answers.answers[Number(field.queries.value)];
    const scores = answer.examples.map((one) => Math.abs(one.score));
    const strongest = Math.max(...scores, 0);
    const several = new Set(answer.examples.map((one) => one.source_file)).size > 1;
    const words = field.mark.checked ? wordsOf(answer) : new Set();
    const { file, wishes } = state.question;
    const signs = wishes.sign === "both" ? SIGNS : [wishes.sign];
    const rows = answer.examples.reduce((sum, one) => sum + 1 + one.same.length, 0);
    const cards = answer.examples.length;
    byId("summary").textContent = `${plural(cards, "example")}${rows > cards ? `, ${number(rows)} rows with those that say the same` : ""}${answer.query_contrast === null ? "" : "; scores are for the answer minus those for the other one"}.`;
    byId("query").hidden = !file;
    byId("query").replaceChildren(passage("Prompt", answer.query_prompt, 0, new Set()), passage("Answer", answer.query_response, 0, new Set()));
    byId("lists").replaceChildren(...signs.map((sign) => list(sign, answer, strongest, several, words)));
  }

  // Words and numbers of the query, but for single letters and words that stand in many rows of the corpus.
  function wordsOf(answer) {
    const text = [answer.query_prompt, answer.query_response, answer.query_contrast || ""].join("\n").toLowerCase();
    return new Set((text.match(WORD) || []).filter((word) => (word.length > 1 || /\p{N}/u.test(word)) && !state.common.has(word)));
  }

  function list(sign, answer, strongest, several, words) {
    const kept = answer.examples.filter((one) => one.sign === sign);
    const fitting = kept.filter((one) => (sign === "helpful" ? one.score > 0 : one.score < 0)).length;
    const heading = fitting || !kept.length ? `Most ${sign}` : sign === "harmful" ? "Least helpful" : "Least harmful";
    const cards = kept.map((one) => card(one, strongest, several, words));
    return element(
      "section",
      { class: `ranked ${sign}`, "aria-label": heading },
      element("h4", { text: heading }),
      element("p", { class: "facts", text: meaning(sign, fitting, kept.length, answer.query_contrast !== null) }),
      element("ol", { class: "cards" }, ...cards),
    );
  }

  function meaning(sign, fitting, all, contrasted) {
    if (!all) return "No row fits the filters.";
    const wanted = sign === "helpful" ? "positive" : "negative";
    const extreme = sign === "helpful" ? "highest" : "lowest";
    if (!fitting) return `No score is ${wanted}: these are merely the ${extreme} ones.`;
    const rest = fitting < all ? ` Only ${fitting} of ${all} are ${wanted}; the others are merely the ${extreme} ones.` : "";
    if (contrasted) return `Predicted to favour ${sign === "helpful" ? "the answer over the other one" : "the other answer over this one"}.${rest}`;
    return `Predicted to ${sign === "helpful" ? "lower" : "raise"} the loss on the answer.${rest}`;
  }

  const where = (row, several) => `row ${number(row.source_row)}${several ? ` of ${row.source_file}` : ""}`;

  function card(row, strongest, several, words) {
    const share = strongest ? Math.abs(row.score) / strongest : 0;
    const bar = element("span", { class: "strength", "aria-hidden": "true" }, element("span"));
    bar.firstChild.style.width = `${(100 * share).toFixed(1)}%`;
    return element(
      "li",
      { class: "card" },
      element("div", { class: "score" }, element("span", { class: "rank", text: row.rank }), element("b", { text: scoreText(row.score, strongest) }), bar),
      element("p", { class: "where" }, element("bdi", { class: "tag", text: row.label === null ? "no label" : visible(row.label) }), element("span", { text: ` ${where(row, several)}` })),
      passage("Prompt", row.prompt, row.prompt_characters, words),
      passage("Response", row.response, row.response_characters, words),
      row.same.length > 0 && sameRows(row, strongest, several),
    );
  }

  function sameRows(row, strongest, several) {
    const line = (one) =>
      element("li", {}, element("b", { text: scoreText(one.score, strongest) }), element("span", { class: "quiet", text: ` no. ${one.rank}, ${where(one, several)} ` }), element("bdi", { text: visible(one.prompt) }));
    const count = row.same.length;
    return element("details", { class: "same" }, element("summary", { text: `and ${plural(count, "row")} that ${count === 1 ? "says" : "say"} the same` }), element("ol", {}, ...row.same.map(line)));
  }

  function passage(title, text, characters, words) {
    const shown = visible(text);
    return blocks.passage(title, shown, characters > text.length ? characters : 0, marked(shown, words));
  }

  function marked(text, words) {
    if (!words.size) return [text];
    const parts = [];
    let end = 0;
    for (const match of text.matchAll(WORD)) {
      if (!words.has(match[0].toLowerCase())) continue;
      parts.push(text.slice(end, match.index), element("mark", { text: match[0] }));
      end = match.index + match[0].length;
    }
    parts.push(text.slice(end));
    return parts;
  }

  // ---- choices

  function chooseFile(file) {
    state.file = file;
    state.answers = null;
    byId("asked-file").hidden = !file;
    byId("file-name").textContent = file ? `Answers for the queries of ${file.name}.` : "";
    if (!file) {
      field.file.value = "";
      byId("answers").hidden = true;
      say(null);
    }
    show();
  }

  byId("question").addEventListener("submit", (event) => {
    event.preventDefault();
    if (state.file) chooseFile(null);
    else show();
  });
  byId("wishes").addEventListener("submit", (event) => event.preventDefault());
  for (const box of [field.prompt, field.response, field.contrast])
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("question").requestSubmit();
    });
  for (const id of ["sign", "label", "top", "least", "fold"]) field[id].addEventListener("change", show);
  field.mark.addEventListener("change", () => state.answers && showAnswer());
  field.queries.addEventListener("change", () => state.answers && showAnswer());
  field.file.addEventListener("change", () => field.file.files.length && chooseFile(field.file.files[0]));
  byId("no-file").addEventListener("click", () => chooseFile(null));
  for (const format of ["csv", "json"]) byId(format).addEventListener("click", () => download(format));

  fetch("/api/about")
    .then((answer) => answer.json())
    .then((about) => {
      state.common = new Set(about.common_words);
      byId("served").textContent = `${about.corpus}, ${plural(about.rows, "row")} · ${about.encoder}`;
      byId("served").title = byId("served").textContent;
      for (const { label, rows } of about.labels)
        field.label.append(element("option", { value: JSON.stringify(label === null ? NO_LABEL : label), text: `${label === null ? "no label" : visible(label)} (${number(rows)})` }));
    })
    .catch(() => say(new Error("The server doesn't answer. Is it still running?")));
})();
