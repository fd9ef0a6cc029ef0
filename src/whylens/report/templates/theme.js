(function () {
  "use strict";
  var root = document.documentElement;
  root.classList.add("js");
  function kept() { try { return localStorage.getItem("whylens-theme"); } catch (e) { return null; } }
  var theme = root.getAttribute("data-theme") || kept();
  if (theme === "dark" || theme === "light") root.setAttribute("data-theme", theme);
  function isDark() {
    var set = root.getAttribute("data-theme");
    return set ? set === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }
  document.addEventListener("DOMContentLoaded", function () {
    var toggle = document.getElementById("theme");
    function label() { toggle.textContent = isDark() ? "Light theme" : "Dark theme"; }
    toggle.addEventListener("click", function () {
      var next = isDark() ? "light" : "dark";
      root.setAttribute("data-theme", next);
      try { localStorage.setItem("whylens-theme", next); } catch (e) { /* private mode: not kept */ }
      label();
    });
    label();
  });
})();
