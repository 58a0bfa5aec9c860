#!/usr/bin/env python3
"""Draws what a request costs beside other proxies, from a result that the bench kept.

usage: plot.py RESULT.json > docs/explanation/performance.svg

Each bar is the median processor time a request, divided into the process's own and the kernel's; the line through its end is
from the least to the most of the rounds.
"""
import json, pathlib, statistics, sys
from xml.sax.saxutils import escape

NAMES = {"countersign": "Countersign, verifying", "haproxy": "HAProxy, verifying", "haproxy:pass": "HAProxy, passing all",
         "nginx:pass": "nginx, passing all", "nginx-lua": "nginx with Lua, verifying", "pingora": "pingora, verifying"}
WIDTH, LEFT, BAR, GAP, TOP = 760, 200, 22, 12, 34


def main():
    runs = json.loads(pathlib.Path(sys.argv[1]).read_text())
    median = lambda label, key: statistics.median(r[key] for r in runs[label])
    labels = sorted((label for label in runs if label != "direct"), key=lambda label: median(label, "cpu_us"))
    most = max(r["cpu_us"] for label in labels for r in runs[label])
    x = lambda us: LEFT + us * (WIDTH - LEFT - 60) / most
    height = TOP + len(labels) * (BAR + GAP) + 30
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
           f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
           f'<text x="{LEFT}" y="20">processor time a request, µs: <tspan fill="#2b6cb0">own</tspan> and <tspan fill="#7a9cc6">kernel</tspan></text>']
    for place, label in enumerate(labels):
        y = TOP + place * (BAR + GAP)
        own, total = median(label, "user_us"), median(label, "cpu_us")
        ends = [r["cpu_us"] for r in runs[label]]
        weight = ' font-weight="bold"' if label == "countersign" else ""
        out += [f'<text x="{LEFT - 10}" y="{y + BAR - 6}" text-anchor="end"{weight}>{escape(NAMES.get(label, label))}</text>',
                f'<rect x="{LEFT}" y="{y}" width="{x(own) - LEFT:.1f}" height="{BAR}" fill="#2b6cb0"/>',
                f'<rect x="{x(own):.1f}" y="{y}" width="{x(total) - x(own):.1f}" height="{BAR}" fill="#7a9cc6"/>',
                f'<line x1="{x(min(ends)):.1f}" x2="{x(max(ends)):.1f}" y1="{y + BAR / 2}" y2="{y + BAR / 2}" stroke="black"/>',
                f'<text x="{x(max(ends)) + 6:.1f}" y="{y + BAR - 6}">{total:.1f}</text>']
    out.append("</svg>")
    print("\n".join(out))


if __name__ == "__main__":
    main()
