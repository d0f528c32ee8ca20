"use strict";
(function () {
  var pictures = Array.prototype.slice.call(document.querySelectorAll("main .picture"));
  var large = document.getElementById("large");
  var help = document.getElementById("help");
  var toggle = document.getElementById("toggle-boxes");
  var said = document.getElementById("said");
  var shown = -1;

  function say(text) { said.textContent = ""; said.textContent = text; }

  function focusOn(index) {
    if (!pictures.length) { return; }
    var next = pictures[Math.max(0, Math.min(pictures.length - 1, index))];
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  }

  function current() { return pictures.indexOf(document.activeElement); }

  // The picture nearest in the next row: rows are read off the layout, as the grid is responsive.
  function inRow(index, direction) {
    var here = pictures[index].getBoundingClientRect();
    var best = -1, bestTop = 0, bestShift = 0;
    pictures.forEach(function (picture, i) {
      var there = picture.getBoundingClientRect();
      var down = (there.top - here.top) * direction;
      var shift = Math.abs(there.left - here.left);
      if (down < 4) { return; }
      if (best < 0 || down < bestTop - 4 || (Math.abs(down - bestTop) <= 4 && shift < bestShift)) {
        best = i; bestTop = down; bestShift = shift;
      }
    });
    return best < 0 ? index : best;
  }

  function enlarge(index) {
    if (index < 0 || index >= pictures.length) { return; }
    shown = index;
    var stage = document.getElementById("large-picture");
    stage.replaceChildren();
    Array.prototype.forEach.call(pictures[index].children, function (child) { stage.appendChild(child.cloneNode(true)); });
    document.getElementById("large-text").textContent = pictures[index].getAttribute("data-text");
    if (!large.open) { large.showModal(); }
  }

  function toggleBoxes() {
    var hidden = document.body.classList.toggle("no-boxes");
    toggle.setAttribute("aria-pressed", String(!hidden));
    say(hidden ? "Boxes hidden" : "Boxes shown");
  }

  function copied(button) {
    var old = button.textContent;
    button.textContent = "Copied";
    say("Copied " + button.getAttribute("data-copy"));
    setTimeout(function () { button.textContent = old; }, 1200);
  }

  function copy(button) {
    var text = button.getAttribute("data-copy");
    function byHand() {
      var area = document.createElement("textarea");
      area.value = text;
      document.body.appendChild(area);
      area.select();
      var done = document.execCommand("copy");
      area.remove();
      button.focus();
      if (done) { copied(button); }
    }
    if (navigator.clipboard) {
      navigator.clipboard.writeText(text).then(function () { copied(button); }, byHand);
    } else {
      byHand();
    }
  }

  document.addEventListener("click", function (event) {
    var button = event.target.closest("button");
    if (event.target === large || event.target === help) { event.target.close(); return; }
    if (!button) { return; }
    if (button.classList.contains("copy")) { copy(button); }
    else if (button.hasAttribute("data-close")) { button.closest("dialog").close(); }
    else if (button.hasAttribute("data-move")) { enlarge(shown + Number(button.getAttribute("data-move"))); }
    else if (button === toggle) { toggleBoxes(); }
    else if (button.id === "show-help") { help.showModal(); }
    else if (pictures.indexOf(button) >= 0) { enlarge(pictures.indexOf(button)); }
  });

  large.addEventListener("close", function () { if (shown >= 0) { focusOn(shown); } shown = -1; });

  document.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey) { return; }
    var key = event.key;
    if (key === "b") { toggleBoxes(); return; }
    if (help.open) { return; }
    if (key === "?") { help.showModal(); return; }
    var moves = { ArrowRight: 1, ArrowDown: 0, j: 1, ArrowLeft: -1, ArrowUp: 0, k: -1, Home: 0, End: 0 };
    if (!Object.prototype.hasOwnProperty.call(moves, key)) { return; }
    if (large.open) {
      var step = key === "ArrowDown" ? 1 : key === "ArrowUp" ? -1 : moves[key];
      enlarge(key === "Home" ? 0 : key === "End" ? pictures.length - 1 : shown + step);
      event.preventDefault();
      return;
    }
    var at = current();
    if (at < 0) {
      if (key !== "ArrowRight" && key !== "j") { return; }
      focusOn(0);
    } else if (key === "Home" || key === "End") {
      focusOn(key === "Home" ? 0 : pictures.length - 1);
    } else if (key === "ArrowDown" || key === "ArrowUp") {
      focusOn(inRow(at, key === "ArrowDown" ? 1 : -1));
    } else {
      focusOn(at + moves[key]);
    }
    event.preventDefault();
  });
})();
