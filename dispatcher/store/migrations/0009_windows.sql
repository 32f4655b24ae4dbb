-- When a sequence's messages may leave, by the clock on the lead's wall: leads.time_zone, else send_time_zone. Without
-- send_from at any time; send_until at or before send_from is the next day's; without send_days every day opens it.

ALTER TABLE sequences
    ADD send_from time CHECK (send_from < '24:00'),
    ADD send_until time CHECK (send_until < '24:00'),
    ADD send_days text[] CHECK (send_days <@ '{mon,tue,wed,thu,fri,sat,sun}' AND send_days <> '{}'),
    ADD send_time_zone text,
    ADD CHECK (num_nulls(send_from, send_until, send_time_zone) IN (0, 3)),
    ADD CHECK (send_days IS NULL OR send_from IS NOT NULL);
