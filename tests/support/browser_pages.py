"""What a browser says of a page: what is too wide, which links lead nowhere, which texts are hard to read."""

OVERFLOWING = """
() => [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('.skip')
  && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 120))
"""
DEAD_LINKS = """
() => [...document.querySelectorAll('a')].filter(a => a.getAttribute('href').startsWith('#')
  ? !document.getElementById(a.getAttribute('href').slice(1)) : !/^https?:/.test(a.href)).map(a => a.outerHTML)
"""
CONTRAST = """
() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const known = {};
  const over = colours => known[colours] ??= painted(colours);
  const painted = colours => {
    canvas.clearRect(0, 0, 1, 1);
    for (const c of colours) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = rgb => { const [r, g, b] = rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92
    : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const bad = [];
  for (const e of document.querySelectorAll('main *, header *, footer *')) {
    if (e.closest('svg') || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const behind = [];
    for (let p = e; p; p = p.parentElement) behind.unshift(getComputedStyle(p).backgroundColor);
    const [a, b] = [light(over(behind)), light(over([...behind, getComputedStyle(e).color]))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) bad.push([ratio.toFixed(2), e.outerHTML.slice(0, 120)]);
  }
  return bad;
}
"""
