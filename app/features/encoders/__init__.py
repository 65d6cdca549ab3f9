"""Networks that make vectors of texts and images when a data set is prepared, and a store of what they made.

Each comes as a package of its own, an extra of RayRec, and is imported where it is used alone: a serving
image has none of them.
"""
