// What scrolls sideways can be reached by the keyboard; tables get their box after the page is loaded.
function reachable() {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap, pre > code")) {
    box.tabIndex = 0;
  }
}
reachable();
new MutationObserver(reachable).observe(document.body, {childList: true, subtree: true});

// A name for screen readers.
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
