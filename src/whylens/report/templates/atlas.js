(function () {
  "use strict";
  document.addEventListener("DOMContentLoaded", function () {
    var list = document.getElementById("cards");
    var search = document.getElementById("search");
    if (!list || !search) return;
    var cards = Array.prototype.slice.call(list.children);
    var choice = document.getElementById("class");
    var order = document.getElementById("order");
    var named = document.getElementById("named");
    var steady = document.getElementById("steady");
    var count = document.getElementById("count");

    function filter() {
      var words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      var shown = 0;
      cards.forEach(function (card) {
        var text = card.getAttribute("data-search");
        var fits = words.every(function (w) {
          return /^\d+$/.test(w) ? card.getAttribute("data-number") === w : text.indexOf(w) >= 0;
        }) &&
          (!choice.value || card.getAttribute("data-classes").indexOf("|" + choice.value + "|") >= 0) &&
          (!named.checked || card.getAttribute("data-name") !== "") &&
          (!steady.checked || card.getAttribute("data-state") !== "always on");
        card.hidden = !fits;
        if (fits) shown += 1;
      });
      count.textContent = shown + " of " + cards.length + " latents shown";
    }
    function value(card, name) {
      var text = card.getAttribute("data-" + name);
      return text === "" ? -Infinity : Number(text);
    }
    function falling(name) {
      return function (a, b) {
        var x = value(a, name), y = value(b, name);
        return x === y ? 0 : y > x ? 1 : -1;
      };
    }
    var keys = {
      given: function () { return 0; },
      activity: falling("activity"),
      c2: falling("c2"),
      contribution: falling("contribution"),
      name: function (a, b) {
        var x = a.getAttribute("data-name"), y = b.getAttribute("data-name");
        if (!x || !y) return (x ? 0 : 1) - (y ? 0 : 1);
        return x.localeCompare(y);
      },
      number: function (a, b) { return value(a, "number") - value(b, "number"); }
    };
    function sort() {
      var by = keys[order.value];
      cards.sort(function (a, b) { return by(a, b) || value(a, "position") - value(b, "position"); });
      cards.forEach(function (card) { list.appendChild(card); });
    }
    search.addEventListener("input", filter);
    [choice, named, steady].forEach(function (tool) { tool.addEventListener("change", filter); });
    order.addEventListener("change", sort);
    // Browsers keep what was typed when one comes back to the page.
    filter();
    sort();
  });
})();
