"""The study of attribution methods on real models that decides the default: `python -m gradellm_bench.study`.

retrieval     generated chats whose answer stands in a known sentence
examples      rows of data sets as prompts, targets and rationales
candidates    the methods that are compared
measure       one row: metrics, ranks and costs of all methods
results       a file of rows, which a run continues
report        tables with intervals

document_chats     generated chats whose documents are named
citations          strengths of citations for the sentences of one chat's answer
citation_report    precision, recall and "no document", by thresholds
citation_commands  the commands of these
"""
