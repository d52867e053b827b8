"""OpenAI's text completions: `/v1/completions`, as vLLM has it.

request.py   requests to the SDK's keywords, one choice for each prompt
choices.py   what the server returns for each choice, merged into one stream
logprobs.py  log-probabilities in OpenAI's older format
answer.py    chunks and answers
"""
