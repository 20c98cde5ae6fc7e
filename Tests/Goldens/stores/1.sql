BEGIN TRANSACTION;
CREATE TABLE adapters (
    name TEXT PRIMARY KEY NOT NULL, job TEXT NOT NULL UNIQUE, base_model TEXT NOT NULL,
    model_blob TEXT NOT NULL, owner_uid INTEGER NOT NULL, created_at REAL NOT NULL
);
INSERT INTO "adapters" VALUES('a-succeeded','j-000000000008','smol','sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',1000,1700000000.0);
CREATE TABLE blobs (
    digest TEXT PRIMARY KEY NOT NULL, bytes INTEGER NOT NULL, owner_uid INTEGER NOT NULL,
    created_at REAL NOT NULL
);
INSERT INTO "blobs" VALUES('sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',9,1000,1700000000.0);
INSERT INTO "blobs" VALUES('sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',9,1000,1700000000.0);
INSERT INTO "blobs" VALUES('sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc',9,1000,1700000000.0);
CREATE TABLE datasets (
    name TEXT PRIMARY KEY NOT NULL, blob TEXT NOT NULL, bytes INTEGER NOT NULL,
    owner_uid INTEGER NOT NULL, created_at REAL NOT NULL, report TEXT NOT NULL
);
INSERT INTO "datasets" VALUES('chats','sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',9,1000,1700000000.0,'{"kinds":{"messages":21},"samples":21}');
CREATE TABLE events (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    seq INTEGER NOT NULL,
    line TEXT NOT NULL,
    PRIMARY KEY (job, seq)
) WITHOUT ROWID;
INSERT INTO "events" VALUES('j-000000000001',1,'{"at":"2023-11-14T22:13:20Z","seq":1,"state":"queued","type":"state"}');
INSERT INTO "events" VALUES('j-000000000001',2,'{"at":"2023-11-14T22:13:20Z","plan":{"budget_bytes":1073741824,"choices":["recompute every layer"],"held_out_samples":2,"peak_bytes":536870912,"pools":[{"bytes":268435456,"name":"base weights"}],"samples":18,"too_long_lines":[3],"too_long_samples":1,"total_steps":9,"trainable_parameters":4884480},"seq":2,"type":"plan"}');
INSERT INTO "events" VALUES('j-000000000002',1,'{"at":"2023-11-14T22:13:20Z","seq":1,"state":"queued","type":"state"}');
INSERT INTO "events" VALUES('j-000000000002',2,'{"at":"2023-11-14T22:13:20Z","plan":{"budget_bytes":1073741824,"choices":["recompute every layer"],"held_out_samples":2,"peak_bytes":536870912,"pools":[{"bytes":268435456,"name":"base weights"}],"samples":18,"too_long_lines":[3],"too_long_samples":1,"total_steps":9,"trainable_parameters":4884480},"seq":2,"type":"plan"}');
INSERT INTO "events" VALUES('j-000000000002',3,'{"at":"2023-11-14T22:13:20Z","progress":{"budget_bytes":1073741824,"epoch":0.5,"eta_seconds":12.5,"grad_norm":0.75,"learning_rate":0.0001,"loss":2.5,"planned_peak_bytes":536870912,"rss_bytes":268435456,"step":3,"tokens_per_second":100.5,"total_steps":9},"seq":3,"type":"step"}');
INSERT INTO "events" VALUES('j-000000000002',4,'{"at":"2023-11-14T22:13:20Z","message":"kernel set avx2","seq":4,"type":"log"}');
INSERT INTO "events" VALUES('j-000000000003',1,'{"at":"2023-11-14T22:13:20Z","seq":1,"state":"queued","type":"state"}');
INSERT INTO "events" VALUES('j-000000000003',2,'{"at":"2023-11-14T22:13:20Z","plan":{"budget_bytes":1073741824,"choices":["recompute every layer"],"held_out_samples":2,"peak_bytes":536870912,"pools":[{"bytes":268435456,"name":"base weights"}],"samples":18,"too_long_lines":[3],"too_long_samples":1,"total_steps":9,"trainable_parameters":4884480},"seq":2,"type":"plan"}');
INSERT INTO "events" VALUES('j-000000000003',3,'{"at":"2023-11-14T22:13:20Z","progress":{"budget_bytes":1073741824,"epoch":0.5,"eta_seconds":12.5,"grad_norm":0.75,"learning_rate":0.0001,"loss":2.5,"planned_peak_bytes":536870912,"rss_bytes":268435456,"step":3,"tokens_per_second":100.5,"total_steps":9},"seq":3,"type":"step"}');
INSERT INTO "events" VALUES('j-000000000003',4,'{"at":"2023-11-14T22:13:20Z","message":"kernel set avx2","seq":4,"type":"log"}');
INSERT INTO "events" VALUES('j-000000000004',1,'{"at":"2023-11-14T22:13:20Z","seq":1,"state":"queued","type":"state"}');
INSERT INTO "events" VALUES('j-000000000004',2,'{"at":"2023-11-14T22:13:20Z","plan":{"budget_bytes":1073741824,"choices":["recompute every layer"],"held_out_samples":2,"peak_bytes":536870912,"pools":[{"bytes":268435456,"name":"base weights"}],"samples":18,"too_long_lines":[3],"too_long_samples":1,"total_steps":9,"trainable_parameters":4884480},"seq":2,"type":"plan"}');
INSERT INTO "events" VALUES('j-000000000004',3,'{"at":"2023-11-14T22:13:20Z","progress":{"budget_bytes":1073741824,"epoch":0.5,"eta_seconds":12.5,"grad_norm":0.75,"learning_rate":0.0001,"loss":2.5,"planned_peak_bytes":536870912,"rss_bytes":268435456,"step":3,"tokens_per_second":100.5,"total_steps":9},"seq":3,"type":"step"}');
INSERT INTO "events" VALUES('j-000000000004',4,'{"at":"2023-11-14T22:13:20Z","message":"kernel set avx2","seq":4,"type":"log"}');
INSERT INTO "events" VALUES('j-000000000005',1,'{"at":"2023-11-14T22:13:20Z","seq":1,"state":"queued","type":"state"}');
INSERT INTO "events" VALUES('j-000000000005',2,'{"at":"2023-11-14T22:13:20Z","plan":{"budget_bytes":1073741824,"choices":["recompute every layer"],"held_out_samples":2,"peak_bytes":536870912,"pools":[{"bytes":268435456,"name":"base weights"}],"samples":18,"too_long_lines":[3],"too_long_samples":1,"total_steps":9,"trainable_parameters":4884480},"seq":2,"type":"plan"}');
INSERT INTO "events" VALUES('j-000000000005',3,'{"at":"2023-11-14T22:13:20Z","progress":{"budget_bytes":1073741824,"epoch":0.5,"eta_seconds":12.5,"grad_norm":0.75,"learning_rate":0.0001,"loss":2.5,"planned_peak_bytes":536870912,"rss_bytes":268435456,"step":3,"tokens_per_second":100.5,"total_steps":9},"seq":3,"type":"step"}');
INSERT INTO "events" VALUES('j-000000000005',4,'{"at":"2023-11-14T22:13:20Z","message":"kernel set avx2","seq":4,"type":"log"}');
INSERT INTO "events" VALUES('j-000000000006',1,'{"at":"2023-11-14T22:13:20Z","seq":1,"state":"queued","type":"state"}');
INSERT INTO "events" VALUES('j-000000000006',2,'{"at":"2023-11-14T22:13:20Z","plan":{"budget_bytes":1073741824,"choices":["recompute every layer"],"held_out_samples":2,"peak_bytes":536870912,"pools":[{"bytes":268435456,"name":"base weights"}],"samples":18,"too_long_lines":[3],"too_long_samples":1,"total_steps":9,"trainable_parameters":4884480},"seq":2,"type":"plan"}');
INSERT INTO "events" VALUES('j-000000000006',3,'{"at":"2023-11-14T22:13:20Z","seq":3,"state":"cancelled","type":"end"}');
INSERT INTO "events" VALUES('j-000000000007',1,'{"at":"2023-11-14T22:13:20Z","seq":1,"state":"queued","type":"state"}');
INSERT INTO "events" VALUES('j-000000000007',2,'{"at":"2023-11-14T22:13:20Z","plan":{"budget_bytes":1073741824,"choices":["recompute every layer"],"held_out_samples":2,"peak_bytes":536870912,"pools":[{"bytes":268435456,"name":"base weights"}],"samples":18,"too_long_lines":[3],"too_long_samples":1,"total_steps":9,"trainable_parameters":4884480},"seq":2,"type":"plan"}');
INSERT INTO "events" VALUES('j-000000000007',3,'{"at":"2023-11-14T22:13:20Z","progress":{"budget_bytes":1073741824,"epoch":0.5,"eta_seconds":12.5,"grad_norm":0.75,"learning_rate":0.0001,"loss":2.5,"planned_peak_bytes":536870912,"rss_bytes":268435456,"step":3,"tokens_per_second":100.5,"total_steps":9},"seq":3,"type":"step"}');
INSERT INTO "events" VALUES('j-000000000007',4,'{"at":"2023-11-14T22:13:20Z","message":"kernel set avx2","seq":4,"type":"log"}');
INSERT INTO "events" VALUES('j-000000000007',5,'{"at":"2023-11-14T22:13:20Z","seq":5,"state":"failed","type":"end"}');
INSERT INTO "events" VALUES('j-000000000008',1,'{"at":"2023-11-14T22:13:20Z","seq":1,"state":"queued","type":"state"}');
INSERT INTO "events" VALUES('j-000000000008',2,'{"at":"2023-11-14T22:13:20Z","plan":{"budget_bytes":1073741824,"choices":["recompute every layer"],"held_out_samples":2,"peak_bytes":536870912,"pools":[{"bytes":268435456,"name":"base weights"}],"samples":18,"too_long_lines":[3],"too_long_samples":1,"total_steps":9,"trainable_parameters":4884480},"seq":2,"type":"plan"}');
INSERT INTO "events" VALUES('j-000000000008',3,'{"at":"2023-11-14T22:13:20Z","progress":{"budget_bytes":1073741824,"epoch":0.5,"eta_seconds":12.5,"grad_norm":0.75,"learning_rate":0.0001,"loss":2.5,"planned_peak_bytes":536870912,"rss_bytes":268435456,"step":3,"tokens_per_second":100.5,"total_steps":9},"seq":3,"type":"step"}');
INSERT INTO "events" VALUES('j-000000000008',4,'{"at":"2023-11-14T22:13:20Z","message":"kernel set avx2","seq":4,"type":"log"}');
INSERT INTO "events" VALUES('j-000000000008',5,'{"at":"2023-11-14T22:13:20Z","seq":5,"state":"succeeded","type":"end"}');
CREATE TABLE grdb_migrations (identifier TEXT NOT NULL PRIMARY KEY);
INSERT INTO "grdb_migrations" VALUES('1 jobs');
CREATE TABLE idempotency_keys (
    owner_uid INTEGER NOT NULL,
    key TEXT NOT NULL,
    body_digest TEXT NOT NULL,
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    PRIMARY KEY (owner_uid, key)
) WITHOUT ROWID;
INSERT INTO "idempotency_keys" VALUES(1000,'key 2','0000000000000000000000000000000000000000000000000000000000000000','j-000000000002');
INSERT INTO "idempotency_keys" VALUES(1000,'key 4','0000000000000000000000000000000000000000000000000000000000000000','j-000000000004');
INSERT INTO "idempotency_keys" VALUES(1000,'key 6','0000000000000000000000000000000000000000000000000000000000000000','j-000000000006');
INSERT INTO "idempotency_keys" VALUES(1000,'key 8','0000000000000000000000000000000000000000000000000000000000000000','j-000000000008');
INSERT INTO "idempotency_keys" VALUES(1001,'key 1','0000000000000000000000000000000000000000000000000000000000000000','j-000000000001');
INSERT INTO "idempotency_keys" VALUES(1001,'key 3','0000000000000000000000000000000000000000000000000000000000000000','j-000000000003');
INSERT INTO "idempotency_keys" VALUES(1001,'key 5','0000000000000000000000000000000000000000000000000000000000000000','j-000000000005');
INSERT INTO "idempotency_keys" VALUES(1001,'key 7','0000000000000000000000000000000000000000000000000000000000000000','j-000000000007');
CREATE TABLE jobs (
    id TEXT PRIMARY KEY NOT NULL,
    place INTEGER NOT NULL UNIQUE,
    name TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'pausing', 'paused', 'cancelling',
        'cancelled', 'failed', 'succeeded')),
    reason TEXT,
    owner_uid INTEGER NOT NULL,
    created_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    runs INTEGER NOT NULL,
    fruitless_runs INTEGER NOT NULL,
    request TEXT NOT NULL,
    model_blob TEXT NOT NULL,
    dataset_blobs TEXT NOT NULL,
    progress TEXT,
    plan TEXT,
    problem TEXT,
    adapter TEXT
);
INSERT INTO "jobs" VALUES('j-000000000001',1,'a-queued','queued',NULL,1001,1700000001.0,NULL,NULL,0,0,'{"adam_beta1":0.9,"adam_beta2":0.999,"adam_epsilon":1e-08,"adapter":"lora","base_model":"smol","datasets":[{"path":"chats"}],"gradient_accumulation_steps":8,"learning_rate":0.0002,"lora_alpha":32,"lora_dropout":0,"lora_r":16,"lora_target_modules":"all-linear","lr_scheduler":"cosine","max_grad_norm":1,"micro_batch_size":1,"name":"a-queued","num_epochs":3,"seed":42,"sequence_len":512,"threads":2,"train_on_inputs":false,"val_set_size":0.1,"weight_decay":0}','sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','["sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]',NULL,'{"budget_bytes":1073741824,"choices":["recompute every layer"],"held_out_samples":2,"peak_bytes":536870912,"pools":[{"bytes":268435456,"name":"base weights"}],"samples":18,"too_long_lines":[3],"too_long_samples":1,"total_steps":9,"trainable_parameters":4884480}',NULL,NULL);
INSERT INTO "jobs" VALUES('j-000000000002',2,'a-running','running',NULL,1000,1700000002.0,1700000060.0,NULL,1,0,'{"adam_beta1":0.9,"adam_beta2":0.999,"adam_epsilon":1e-08,"adapter":"lora","base_model":"smol","datasets":[{"path":"chats"}],"gradient_accumulation_steps":8,"learning_rate":0.0002,"lora_alpha":32,"lora_dropout":0,"lora_r":16,"lora_target_modules":"all-linear","lr_scheduler":"cosine","max_grad_norm":1,"micro_batch_size":1,"name":"a-running","num_epochs":3,"seed":42,"sequence_len":512,"threads":2,"train_on_inputs":false,"val_set_size":0.1,"weight_decay":0}','sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','["sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]','{"budget_bytes":1073741824,"epoch":0.5,"eta_seconds":12.5,"grad_norm":0.75,"learning_rate":0.0001,"loss":2.5,"planned_peak_bytes":536870912,"rss_bytes":268435456,"step":3,"tokens_per_second":100.5,"total_steps":9}','{"budget_bytes":1073741824,"choices":["recompute every layer"],"held_out_samples":2,"peak_bytes":536870912,"pools":[{"bytes":268435456,"name":"base weights"}],"samples":18,"too_long_lines":[3],"too_long_samples":1,"total_steps":9,"trainable_parameters":4884480}',NULL,NULL);
INSERT INTO "jobs" VALUES('j-000000000003',3,'a-pausing','pausing',NULL,1001,1700000003.0,1700000060.0,NULL,1,0,'{"adam_beta1":0.9,"adam_beta2":0.999,"adam_epsilon":1e-08,"adapter":"lora","base_model":"smol","datasets":[{"path":"chats"}],"gradient_accumulation_steps":8,"learning_rate":0.0002,"lora_alpha":32,"lora_dropout":0,"lora_r":16,"lora_target_modules":"all-linear","lr_scheduler":"cosine","max_grad_norm":1,"micro_batch_size":1,"name":"a-pausing","num_epochs":3,"seed":42,"sequence_len":512,"threads":2,"train_on_inputs":false,"val_set_size":0.1,"weight_decay":0}','sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','["sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]','{"budget_bytes":1073741824,"epoch":0.5,"eta_seconds":12.5,"grad_norm":0.75,"learning_rate":0.0001,"loss":2.5,"planned_peak_bytes":536870912,"rss_bytes":268435456,"step":3,"tokens_per_second":100.5,"total_steps":9}','{"budget_bytes":1073741824,"choices":["recompute every layer"],"held_out_samples":2,"peak_bytes":536870912,"pools":[{"bytes":268435456,"name":"base weights"}],"samples":18,"too_long_lines":[3],"too_long_samples":1,"total_steps":9,"trainable_parameters":4884480}',NULL,NULL);
INSERT INTO "jobs" VALUES('j-000000000004',4,'a-paused','paused','why',1000,1700000004.0,1700000060.0,NULL,1,0,'{"adam_beta1":0.9,"adam_beta2":0.999,"adam_epsilon":1e-08,"adapter":"lora","base_model":"smol","datasets":[{"path":"chats"}],"gradient_accumulation_steps":8,"learning_rate":0.0002,"lora_alpha":32,"lora_dropout":0,"lora_r":16,"lora_target_modules":"all-linear","lr_scheduler":"cosine","max_grad_norm":1,"micro_batch_size":1,"name":"a-paused","num_epochs":3,"seed":42,"sequence_len":512,"threads":2,"train_on_inputs":false,"val_set_size":0.1,"weight_decay":0}','sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','["sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]','{"budget_bytes":1073741824,"epoch":0.5,"eta_seconds":12.5,"grad_norm":0.75,"learning_rate":0.0001,"loss":2.5,"planned_peak_bytes":536870912,"rss_bytes":268435456,"step":3,"tokens_per_second":100.5,"total_steps":9}','{"budget_bytes":1073741824,"choices":["recompute every layer"],"held_out_samples":2,"peak_bytes":536870912,"pools":[{"bytes":268435456,"name":"base weights"}],"samples":18,"too_long_lines":[3],"too_long_samples":1,"total_steps":9,"trainable_parameters":4884480}',NULL,NULL);
INSERT INTO "jobs" VALUES('j-000000000005',5,'a-cancelling','cancelling',NULL,1001,1700000005.0,1700000060.0,NULL,1,0,'{"adam_beta1":0.9,"adam_beta2":0.999,"adam_epsilon":1e-08,"adapter":"lora","base_model":"smol","datasets":[{"path":"chats"}],"gradient_accumulation_steps":8,"learning_rate":0.0002,"lora_alpha":32,"lora_dropout":0,"lora_r":16,"lora_target_modules":"all-linear","lr_scheduler":"cosine","max_grad_norm":1,"micro_batch_size":1,"name":"a-cancelling","num_epochs":3,"seed":42,"sequence_len":512,"threads":2,"train_on_inputs":false,"val_set_size":0.1,"weight_decay":0}','sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','["sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]','{"budget_bytes":1073741824,"epoch":0.5,"eta_seconds":12.5,"grad_norm":0.75,"learning_rate":0.0001,"loss":2.5,"planned_peak_bytes":536870912,"rss_bytes":268435456,"step":3,"tokens_per_second":100.5,"total_steps":9}','{"budget_bytes":1073741824,"choices":["recompute every layer"],"held_out_samples":2,"peak_bytes":536870912,"pools":[{"bytes":268435456,"name":"base weights"}],"samples":18,"too_long_lines":[3],"too_long_samples":1,"total_steps":9,"trainable_parameters":4884480}',NULL,NULL);
INSERT INTO "jobs" VALUES('j-000000000006',6,'a-cancelled','cancelled',NULL,1000,1700000006.0,NULL,1700000120.0,0,0,'{"adam_beta1":0.9,"adam_beta2":0.999,"adam_epsilon":1e-08,"adapter":"lora","base_model":"smol","datasets":[{"path":"chats"}],"gradient_accumulation_steps":8,"learning_rate":0.0002,"lora_alpha":32,"lora_dropout":0,"lora_r":16,"lora_target_modules":"all-linear","lr_scheduler":"cosine","max_grad_norm":1,"micro_batch_size":1,"name":"a-cancelled","num_epochs":3,"seed":42,"sequence_len":512,"threads":2,"train_on_inputs":false,"val_set_size":0.1,"weight_decay":0}','sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','["sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]',NULL,'{"budget_bytes":1073741824,"choices":["recompute every layer"],"held_out_samples":2,"peak_bytes":536870912,"pools":[{"bytes":268435456,"name":"base weights"}],"samples":18,"too_long_lines":[3],"too_long_samples":1,"total_steps":9,"trainable_parameters":4884480}',NULL,NULL);
INSERT INTO "jobs" VALUES('j-000000000007',7,'a-failed','failed','why',1001,1700000007.0,1700000060.0,1700000120.0,1,0,'{"adam_beta1":0.9,"adam_beta2":0.999,"adam_epsilon":1e-08,"adapter":"lora","base_model":"smol","datasets":[{"path":"chats"}],"gradient_accumulation_steps":8,"learning_rate":0.0002,"lora_alpha":32,"lora_dropout":0,"lora_r":16,"lora_target_modules":"all-linear","lr_scheduler":"cosine","max_grad_norm":1,"micro_batch_size":1,"name":"a-failed","num_epochs":3,"seed":42,"sequence_len":512,"threads":2,"train_on_inputs":false,"val_set_size":0.1,"weight_decay":0}','sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','["sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]','{"budget_bytes":1073741824,"epoch":0.5,"eta_seconds":12.5,"grad_norm":0.75,"learning_rate":0.0001,"loss":2.5,"planned_peak_bytes":536870912,"rss_bytes":268435456,"step":3,"tokens_per_second":100.5,"total_steps":9}','{"budget_bytes":1073741824,"choices":["recompute every layer"],"held_out_samples":2,"peak_bytes":536870912,"pools":[{"bytes":268435456,"name":"base weights"}],"samples":18,"too_long_lines":[3],"too_long_samples":1,"total_steps":9,"trainable_parameters":4884480}','{"detail":"step 4: loss nan","status":500,"title":"The loss or a gradient is not finite","type":"urn:edgetune:problem:non-finite"}',NULL);
INSERT INTO "jobs" VALUES('j-000000000008',8,'a-succeeded','succeeded',NULL,1000,1700000008.0,1700000060.0,1700000120.0,1,0,'{"adam_beta1":0.9,"adam_beta2":0.999,"adam_epsilon":1e-08,"adapter":"lora","base_model":"smol","datasets":[{"path":"chats"}],"gradient_accumulation_steps":8,"learning_rate":0.0002,"lora_alpha":32,"lora_dropout":0,"lora_r":16,"lora_target_modules":"all-linear","lr_scheduler":"cosine","max_grad_norm":1,"micro_batch_size":1,"name":"a-succeeded","num_epochs":3,"seed":42,"sequence_len":512,"threads":2,"train_on_inputs":false,"val_set_size":0.1,"weight_decay":0}','sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','["sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]','{"budget_bytes":1073741824,"epoch":0.5,"eta_seconds":12.5,"grad_norm":0.75,"learning_rate":0.0001,"loss":2.5,"planned_peak_bytes":536870912,"rss_bytes":268435456,"step":3,"tokens_per_second":100.5,"total_steps":9}','{"budget_bytes":1073741824,"choices":["recompute every layer"],"held_out_samples":2,"peak_bytes":536870912,"pools":[{"bytes":268435456,"name":"base weights"}],"samples":18,"too_long_lines":[3],"too_long_samples":1,"total_steps":9,"trainable_parameters":4884480}',NULL,'a-succeeded');
CREATE TABLE models (
    name TEXT PRIMARY KEY NOT NULL, blob TEXT NOT NULL, owner_uid INTEGER NOT NULL,
    created_at REAL NOT NULL, report TEXT NOT NULL
);
INSERT INTO "models" VALUES('smol','sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',1000,1700000000.0,'{"architecture":"llama","context_length":2048,"file_bytes":9,"hidden_size":576,"layers":30,"parameters":134515008,"quantisation":"Q4_1 71 %","target_modules":["q_proj","v_proj"],"vocabulary":49152}');
CREATE INDEX jobs_by_state ON jobs (state, place);
CREATE INDEX idempotency_keys_by_job ON idempotency_keys (job);
COMMIT;
