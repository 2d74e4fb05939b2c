const text = document.getElementById("text"), tip = document.getElementById("tip");
let shown = null;
function hide() {
  if (shown) shown.title = tip.textContent;
  shown = null;
  tip.hidden = true;
}
text.addEventListener("pointerover", event => {
  hide();
  shown = event.target.closest("[title]");
  if (!shown) return;
  tip.textContent = shown.title;
  shown.removeAttribute("title");
  tip.hidden = false;
  const at = shown.getClientRects()[0];
  tip.style.left = Math.max(4, Math.min(at.left, innerWidth - tip.offsetWidth - 4)) + "px";
  const height = tip.offsetHeight + 4;
  tip.style.top = (at.bottom + height + 4 < innerHeight ? at.bottom + 4 : at.top - height) + "px";
});
text.addEventListener("pointerleave", hide);
addEventListener("scroll", hide);
