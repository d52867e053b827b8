"""Explanations: a completion with its attribution; queries, files, pictures and verification.

explanation.py     Explanation, the facade whose methods call the modules below
queries.py         sums of scores by word, segment, role or message
citations.py       the documents that each sentence of the answer was drawn from
naming/            names of a question that no document has
sentences.py       a text split into sentences
tracing/           sources through the model's own words
reasoning.py       blocks of reasoning in a completion
words.py           tokens grouped into words
retention.py       keep probabilities of tokens
validation.py      consistency checks
io.py              files: JSON, safetensors, HTML, images
html.py            a web page, with assets/
plot.py            a matrix as an image
terminal_view.py   a heat map per word on a terminal
verification/      replay of a stored explanation on a server
"""
