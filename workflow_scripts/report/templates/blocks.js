// What the report and the live page build their examples of. Text enters a page through textContent alone.
"use strict";
const blocks = (() => {
  const CLAMPED_AT = 260;

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") made.textContent = value;
      else if (name === "onclick") made.addEventListener("click", value);
      else if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter(Boolean));
    return made;
  }

  const number = (value) => value.toLocaleString("en");

  // All scores of a question have the digits that the strongest one deserves.
  function scoreText(value, strongest) {
    const digits = Math.min(Math.max(2 - Math.floor(Math.log10(strongest || 1)), 0), 8);
    return (value < 0 ? "−" : value > 0 ? "+" : "") + Math.abs(value).toFixed(digits);
  }

  // `whole` is the length of the text where `shown` is only its beginning, else 0; `parts` are what the page makes of
  // `shown`.
  function passage(title, shown, whole, parts = [shown]) {
    const body = element("p", { class: "text", dir: "auto" });
    body.append(...(shown ? parts : ["(empty)"]));
    const cut = whole && element("p", { class: "cut", text: `… cut here; the whole text has ${number(whole)} characters` });
    const long = shown.length > CLAMPED_AT || shown.split("\n").length > 5;
    const block = element("div", { class: long ? "passage clamped" : "passage" }, element("h5", { text: title }), body, cut);
    if (long) {
      const toggle = element("button", {
        type: "button",
        class: "plain small",
        "aria-expanded": "false",
        text: "Show all",
        onclick: () => {
          const open = !block.classList.toggle("clamped");
          toggle.textContent = open ? "Show less" : "Show all";
          toggle.setAttribute("aria-expanded", String(open));
        },
      });
      block.append(toggle);
    }
    return block;
  }

  return { element, number, passage, scoreText };
})();
