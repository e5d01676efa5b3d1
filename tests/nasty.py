"""Texts that would be markup, script, style or an address, if anything took them for that."""

from __future__ import annotations

from hypothesis import strategies as st

__all__ = ["NASTY", "nasty"]

RUN = "window.ran=(window.ran||0)+1"

NASTY = (
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"</SCRIPT\t><ScRiPt>{RUN}</sCrIpT>",
    f"<!--<script>{RUN}",
    f"--><script>{RUN}</script>",
    f"]]><script>{RUN}</script>",
    f"<img src=x onerror='{RUN}'>",
    f'"><img src=x onerror="{RUN}">',
    f"' autofocus onfocus='{RUN}",
    f"<svg/onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<math><mtext><style><img src onerror={RUN}>",
    f"<iframe srcdoc='&lt;script&gt;parent.{RUN}&lt;/script&gt;'></iframe>",
    f"<a href='javascript:{RUN}'>x</a>",
    f"javascript:{RUN}",
    f"data:text/html,<script>{RUN}</script>",
    f"<base href='https://example.invalid/'><form action='javascript:{RUN}'>",
    f"<meta http-equiv=refresh content='0;url=javascript:{RUN}'>",
    f"<details open ontoggle={RUN}>",
    f"<template><script>{RUN}</script></template>",
    "<style>*{display:none!important}</style>",
    "</style><style>*{display:none!important}</style>",
    "*{background:url(https://example.invalid/x)}",
    "<link rel=stylesheet href=https://example.invalid/x.css>",
    "<plaintext>",
    "<textarea>",
    "<title>",
    "</title><h1>x",
    "&lt;b&gt; &amp;lt; &#60;script&#62; &quot;",
    '{"text":"</script>"}',
    "${alert(1)} {{title}} {{records}} {{script}} %s {0}",
    "\\u003cscript\\u003e",
    "a\u2028b\u2029c\x85d",
    "\u202egnp.exe\u202c \u2066isolated\u2069 \u200e\u200f\u061c",
    "\ufeff\u200b\u00ad\u2060\u180e",
    "\x00\x01\x08\x0b\x0c\x1b[31m\x7f\x9b",
    "\r\r\n\t",
    "\ud800 \udfff",
    "\U000e0001\U000e0041 \uffff \U0010ffff",
    "é👍🏽 e\u0301 ﷽ 𝒳 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "שלום عربي abc",
    "A" * 300,
    "__proto__",
    "constructor",
)
"""Every one sets `window.ran` where it runs."""


def nasty() -> st.SearchStrategy[str]:
    """Nasty texts, alone and in a row with others."""
    other = st.text(max_size=6)
    return st.lists(st.one_of(st.sampled_from(NASTY), other), min_size=1, max_size=4).map("".join)
