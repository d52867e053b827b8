"""OpenAI's Responses API, without storage: `/v1/responses`.

request.py  requests to the SDK's keywords
answer.py   the response object, and the events of a streamed one
"""
