// The job store: its structure, its rows, and what to do when SQLite cannot read it.
import EdgeJobs
import EdgeWire
import Foundation

extension StateCheck {
    mutating func checkStore() throws {
        do {
            try StrayFiles.requireStore(places)
            guard try StoreInspection.isStore(places.store) else {
                report.add(.note, "job store", "there is none yet")
                return
            }
            let store = try StoreInspection(path: places.store, mode == .repair ? .repairing : .reading)
            self.store = store
            let damage = try store.structuralDamage()
            if !damage.isEmpty { try mendStructure(store, damage) }
            try checkRows()
        } catch StoreError.damaged(let what) {
            try store?.close()
            store = nil
            report.add(.damage, "job store", what, done: try rebuild())
            try checkRows()
        }
    }

    private mutating func checkRows() throws {
        guard let store else { return }
        if let schema = store.schema, schema != StoreInspection.newestSchema {
            report.add(.note, "job store", "its schema is \"\(schema)\"; the next start makes a copy and upgrades it")
        }
        try checkRows(store)
        contents = try store.contents()
        for (id, state) in contents.jobs.sorted(by: { $0.key < $1.key }) where [.running, .pausing, .cancelling].contains(state) {
            report.add(.note, "job \(id)", "was \(state.rawValue) when edgetuned ended; the next start sees to it")
        }
    }

    /// Damage of indices alone is mended by building them anew.
    private mutating func mendStructure(_ store: StoreInspection, _ damage: [String]) throws {
        let detail = damage.prefix(5).joined(separator: "; ") + (damage.count > 5 ? "; and \(damage.count - 5) more" : "")
        guard mode == .repair else {
            report.add(.damage, "job store", detail)
            return
        }
        // A table that is damaged itself fails here, or is still damaged afterwards.
        if (try? store.reindex()) != nil, try store.structuralDamage().isEmpty {
            report.add(.damage, "job store", detail, done: "its indices are built anew; nothing is lost")
        } else {
            try store.close()
            self.store = nil
            report.add(.damage, "job store", detail, done: try rebuild())
        }
    }

    /// Moves the store aside and makes a new one of what can be read.
    private mutating func rebuild() throws -> String? {
        guard mode == .repair else { return nil }
        let fresh = places.store + ".rebuilt"
        for ending in ["", "-wal", "-shm"] { try? FileManager.default.removeItem(atPath: fresh + ending) }
        let copied = try StoreSalvage.rebuild(places.store, as: fresh)
        for ending in ["", "-wal", "-shm"] where FileManager.default.fileExists(atPath: places.store + ending) {
            try quarantine.take(places.store + ending, because: "the job store was damaged; another was made of what could be read")
        }
        guard rename(fresh, places.store) == 0 else {
            throw ConfigError("\(fresh) cannot take its place: \(String(cString: strerror(errno)))")
        }
        storeWasRebuilt = true
        store = try StoreInspection(path: places.store, .repairing)
        return "moved aside, and made anew of what can be read: "
            + copied.map { "\($0.rows) \($0.table)" }.joined(separator: ", ")
    }

    private mutating func checkRows(_ store: StoreInspection) throws {
        for row in try store.unreadableRows() {
            var done: String?
            if mode == .repair {
                try quarantine.take(rows: try store.takeOut(row), of: row.table, because: row.reason)
                done = "the row is taken out and written down"
            }
            report.add(.damage, "row \(row.rowID) of \(row.table)", row.reason, done: done)
        }
        let events = try store.badEvents()
        guard !events.isEmpty else { return }
        var done: String?
        if mode == .repair {
            try quarantine.take(rows: try store.takeOutBadEvents(), of: "events", because: "no event of that place and job")
            done = "taken out and written down"
        }
        report.add(.damage, "events", "\(events.count) cannot be told, the first is \(events[0])", done: done)
    }
}
