// Mark the section in view in the contents, and keep its entry in sight.
const nav = document.querySelector("nav");
const links = [...nav.querySelectorAll("a")];
const places = links.map((link) => document.getElementById(link.hash.slice(1)));
function mark() {
  const atEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 2;
  const passed = places.filter((place) => place.getBoundingClientRect().top < innerHeight / 4).length;
  const now = links[atEnd ? links.length - 1 : Math.max(passed - 1, 0)];
  if (now.ariaCurrent) return;
  for (const link of links) link.ariaCurrent = null;
  now.ariaCurrent = "location";
  nav.scrollTop = now.offsetTop - nav.clientHeight / 3;
}
addEventListener("scroll", mark, { passive: true });
addEventListener("resize", mark, { passive: true });
mark();
