"""The OpenAPI document of the gateway, made of the tables that requests are checked by.

schemas.py   JSON schemas of checks
document.py  the document
page.py      the document as a page
"""
