"""Score a data set with a bundle on as many machines as Ray has.

inputs      the files, their rows, and shards of them in a fixed order
images, arrays, tables      one file per format: how many rows it has, and its rows one by one
pixels      an encoded image becomes an input
shard       one shard: read, run in batches, written to a Parquet file that appears whole
ledger      what a folder holds already: which run, which shards
cluster     an actor pool of Ray Data that scores shards
run         all of it in order
"""
