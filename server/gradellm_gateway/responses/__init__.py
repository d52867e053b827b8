"""OpenAI's Responses API, without storage: `/v1/responses`.

request.py       requests to the SDK's keywords
conversation.py  items to messages
answer.py        the response object, and the events of a streamed one
output.py        their items: reasoning, text and calls
"""
