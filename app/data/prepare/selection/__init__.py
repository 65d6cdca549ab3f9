"""Which rows are kept and which part they are in; only training rows decide.

What is held out must not shape what is trained on. So, for outlier bounds and the k-core:

    1 Rows without duplicates are split, and bounds are fitted to the values of those that train.
    2 Rows of any part beyond the bounds are dropped or clipped.
    3 In rounds, the rows left are split anew, and what has too few training rows falls: first
      users, with all their rows, then items. What has fallen does not come back. A round in which
      no item falls is the last, and its split is the data set's.

Splitting anew is what makes a user's last event that is kept their test event. A row that trained in
step 1 may so be held out in the end, where a later one of its user was dropped.

Rows of given test files never count; beyond the bounds they are dropped like all others, but no core
drops them: an item that fell is row 0 there.
"""
