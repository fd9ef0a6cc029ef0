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

    var closed = [];
    addEventListener("beforeprint", function () {
      closed = Array.prototype.slice.call(document.querySelectorAll("details:not([open])"));
      closed.forEach(function (d) { d.open = true; });
    });
    addEventListener("afterprint", function () { closed.forEach(function (d) { d.open = false; }); });
  });
})();
