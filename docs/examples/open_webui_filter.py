"""Open WebUI: files of a chat are documents that the answer cites.

In Open WebUI, paste this file under Admin Panel, Functions, and enable it for models of `gradellm gateway`.
"""

from __future__ import annotations

from typing import Any


class Filter:
    """Names the texts that Open WebUI has put into the messages in the request's `gradellm.documents`."""

    def request(self, body: dict[str, Any], __metadata__: dict[str, Any]) -> dict[str, Any]:
        contents = [each["content"] for each in body["messages"] if isinstance(each.get("content"), str)]
        documents: list[dict[str, str]] = []
        for source in __metadata__.get("sources") or ():
            for part, text in enumerate(source.get("document") or (), 1):
                is_known = any(text == other["text"] for other in documents)
                if text and not is_known and any(text in content for content in contents):
                    name = source.get("source", {}).get("name") or "document"
                    number = len(documents) + 1
                    documents.append({"name": f"{number}. {name}, part {part}", "text": text})
        if documents:
            body["gradellm"] = {"annotations": False, **body.get("gradellm", {}), "documents": documents}
        return body
