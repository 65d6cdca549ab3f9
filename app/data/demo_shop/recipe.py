"""The recipe that the demo shop comes with: complete, and a good default for its data."""

RECIPE = """\
name = "shop"
seed = {seed}

[data]
events = ["events.csv"]
user = "user_id"
item = "item_id"
timestamp = "timestamp"
event = "event"
value = "quantity"
event_types = ["view", "cart", "purchase"]
where = "quantity > 0"  # returns are no interest
duplicates = "exact"
outliers = [{{column = "price", method = "iqr", threshold = 15.0, action = "drop"}}]
earliest = "2024-01-01"
latest = "2024-12-31"
min_user_events = 3  # to train on; passers-by have fewer

[data.items]
files = ["items.csv"]
id = "item_id"
columns = ["category", "price", "title"]

[data.users]
files = ["users.csv"]
id = "user_id"
columns = ["country", "age"]

[split]
method = "leave_last"

[features]
history = 30
context = ["hour", "weekday", "recency"]

[[features.item]]
column = "category"
kind = "category"

[[features.item]]
column = "price"
kind = "number"
normalise = "log"
missing = "category"

[[features.item]]
column = "title"
kind = "text"
buckets = 64

[[features.user]]
column = "country"
kind = "category"

[[features.user]]
column = "age"
kind = "number"
missing = "category"

[model]
name = "auto"

[train]
minutes = 0.3
epochs = 4
batch_size = 256
schedule = "cosine"
valid_users = 500

[evaluate]
candidates = "all"

[compress]
rows = "int8"
"""
