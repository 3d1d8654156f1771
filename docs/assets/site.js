// What scrolls sideways can be reached by the keyboard.
for (const box of document.querySelectorAll(".md-typeset__scrollwrap, .highlight code, pre > code")) {
  box.tabIndex = 0;
}
