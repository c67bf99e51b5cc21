"""From records to batches: reading images, transforms, collating, stateful loading. Imports nothing by itself."""
