(function () {
  "use strict";
  document.addEventListener("DOMContentLoaded", function () {
    var list = document.getElementById("cards");
    if (!list) return;
    var cards = Array.prototype.slice.call(list.children);
    var search = document.getElementById("search");
    var choice = document.getElementById("class");
    var order = document.getElementById("order");
    var only = document.getElementById("only");
    var count = document.getElementById("count");

    function filter() {
      var words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      var shown = 0;
      cards.forEach(function (card) {
        var text = card.getAttribute("data-search");
        var fits = words.every(function (w) { return text.indexOf(w) >= 0; }) &&
          (!choice.value || card.getAttribute("data-class") === choice.value) &&
          (!only.checked || card.hasAttribute("data-supported"));
        card.hidden = !fits;
        if (fits) shown += 1;
      });
      count.textContent = shown + " of " + cards.length + " pictures shown";
    }
    var keys = {
      given: function (a, b) { return a.getAttribute("data-position") - b.getAttribute("data-position"); },
      name: function (a, b) { return a.getAttribute("data-name").localeCompare(b.getAttribute("data-name")); },
      "class": function (a, b) { return a.getAttribute("data-class-name").localeCompare(b.getAttribute("data-class-name")); },
      sure: function (a, b) { return b.getAttribute("data-probability") - a.getAttribute("data-probability"); },
      unsure: function (a, b) { return a.getAttribute("data-probability") - b.getAttribute("data-probability"); }
    };
    function sort() {
      var by = keys[order.value];
      cards.sort(function (a, b) { return by(a, b) || keys.given(a, b); });
      cards.forEach(function (card) { list.appendChild(card); });
    }
    search.addEventListener("input", filter);
    choice.addEventListener("change", filter);
    only.addEventListener("change", filter);
    order.addEventListener("change", sort);
    document.querySelectorAll("[data-find]").forEach(function (button) {
      button.addEventListener("click", function () {
        search.value = button.getAttribute("data-find");
        choice.value = "";
        filter();
        document.getElementById("pictures").scrollIntoView();
        search.focus({ preventScroll: true });
      });
    });
    // Browsers keep what was typed when one comes back to the page.
    filter();
    sort();
  });
})();
