"""The stages as functions on arrays and folders, for programs of one's own: no Ray, no work folder.

`from curate import embed, dedup, retrieve, balance, top_up` is the way to them. They call what the stages
call, so that the same vectors give the same result. All of it happens in this process, and in memory:
for more images than that allows there is `lvd-curate run`.
"""
