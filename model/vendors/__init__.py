"""The shapes in which Segment, RudderStack, Snowplow and Google Analytics 4 send events: one table each.

`willbuy prepare` reads logs by these tables and the service reads requests by them, so that both get the same events.
"""
