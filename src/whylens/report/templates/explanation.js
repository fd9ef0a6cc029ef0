(function () {
  "use strict";
  document.addEventListener("DOMContentLoaded", function () {
    var status = document.getElementById("status");
    function say(text) { status.textContent = ""; setTimeout(function () { status.textContent = text; }, 50); }

    function copy(text) {
      if (navigator.clipboard) return navigator.clipboard.writeText(text);
      var area = document.createElement("textarea");
      area.value = text;
      document.body.appendChild(area);
      area.select();
      var done = document.execCommand("copy");
      area.remove();
      return done ? Promise.resolve() : Promise.reject();
    }
    document.querySelectorAll("[data-copy]").forEach(function (button) {
      var name = button.textContent;
      button.addEventListener("click", function () {
        copy(document.getElementById(button.getAttribute("data-copy")).textContent).then(
          function () { button.textContent = "Copied"; say("Copied to the clipboard"); },
          function () { button.textContent = "Failed"; say("Could not copy"); }
        ).then(function () { setTimeout(function () { button.textContent = name; }, 1500); });
      });
    });

    // Parsing and writing again would respell large integers; `whylens verify` wants every byte as it was.
    function unescaped(text) {
      return text.replace(/\\(\\|u003c|u003e|u0026|u2028|u2029)/g, function (found, what) {
        return what === "\\" ? found : String.fromCharCode(parseInt(what.slice(1), 16));
      });
    }
    var save = document.getElementById("download");
    save.addEventListener("click", function () {
      var text = unescaped(document.getElementById("record").textContent) + "\n";
      var blob = new Blob([text], { type: "application/json" });
      var link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = save.getAttribute("data-name");
      link.click();
      setTimeout(function () { URL.revokeObjectURL(link.href); }, 1000);
    });

    document.querySelectorAll(".heat input[type=range]").forEach(function (slider) {
      function show() {
        slider.closest(".heat").style.setProperty("--slider", slider.value / 100);
        slider.setAttribute("aria-valuetext", slider.value + " percent");
      }
      slider.addEventListener("input", show);
      show();
    });

    // A copy of a unit's card beside the row that is pointed at, tapped, or whose link has the focus.
    var peek = null, owner = null, touched = false;
    function hide() { if (peek) { peek.remove(); peek = owner = null; } }
    function show(row) {
      hide();
      var source = document.getElementById(row.getAttribute("data-peek"));
      if (!source) return;
      owner = row;
      peek = source.cloneNode(true);
      peek.removeAttribute("id");
      peek.className = "heat peek";
      peek.setAttribute("aria-hidden", "true");
      peek.querySelectorAll("input").forEach(function (input) { input.disabled = true; });
      document.body.appendChild(peek);
      var at = row.getBoundingClientRect();
      var left = Math.min(at.right + 16, document.documentElement.clientWidth - peek.offsetWidth - 8);
      var top = at.top + at.height / 2 - peek.offsetHeight / 2;
      top = Math.max(8, Math.min(top, window.innerHeight - peek.offsetHeight - 8));
      // Where it would cover the row it lies below.
      if (left < at.right) top = at.bottom + 8;
      peek.style.left = Math.max(8, left) + scrollX + "px";
      peek.style.top = top + scrollY + "px";
    }
    document.addEventListener("pointerdown", function (event) {
      touched = event.pointerType === "touch";
      if (owner && !owner.contains(event.target)) hide();
    });
    document.addEventListener("keydown", function (event) {
      touched = false;
      if (event.key === "Escape") hide();
    });
    document.querySelectorAll("tr[data-peek]").forEach(function (row) {
      row.addEventListener("pointerenter", function (event) { if (event.pointerType !== "touch") show(row); });
      row.addEventListener("pointerleave", function (event) { if (event.pointerType !== "touch") hide(); });
      row.addEventListener("focusin", function () { if (!touched) show(row); });
      row.addEventListener("focusout", hide);
      row.addEventListener("click", function (event) {
        // The first tap shows the card, the second follows the link.
        if (touched && owner !== row) { event.preventDefault(); show(row); } else hide();
      });
    });

    // The bands of the bar that is pointed at stand out.
    document.querySelectorAll(".flow .node").forEach(function (node) {
      var drawing = node.closest(".flow"), number = node.getAttribute("data-node");
      function light(on) {
        drawing.classList.toggle("lighting", on);
        drawing.querySelectorAll("path").forEach(function (path) {
          var own = path.getAttribute("data-start") === number || path.getAttribute("data-end") === number;
          path.classList.toggle("lit", on && own);
        });
      }
      node.addEventListener("pointerenter", function () { light(true); });
      node.addEventListener("pointerleave", function () { light(false); });
    });

    var closed = [];
    addEventListener("beforeprint", function () {
      closed = Array.prototype.slice.call(document.querySelectorAll("details:not([open])"));
      closed.forEach(function (d) { d.open = true; });
    });
    addEventListener("afterprint", function () { closed.forEach(function (d) { d.open = false; }); });
  });
})();
