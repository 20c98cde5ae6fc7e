// Which connections there are, and who is let in when they are many. A pure value: the sockets are UnixHTTPService's. No user
// can fill the daemon for others: what one user holds is limited, a part is for those who hold none yet and for admins, and
// whoever must be let in takes the place of a connection that waits for its next request.

package struct ConnectionTable: Sendable {
    package struct Limits: Sendable {
        /// Open at once. systemd's LimitNOFILE is eight times as much.
        package var all = 512
        /// Of one uid, whoever that is: an admin's runaway script must not keep him from stopping it.
        package var perUser = 256
        /// Of `all`, for admins and for users without a connection.
        package var reserved = 64

        package init() {}
    }

    package enum Admission: Equatable, Sendable {
        /// - Parameter evicted: a connection to be closed for it.
        case admitted(id: Int, evicted: Int?)
        case refused(why: String)
    }

    private struct Entry {
        let uid: UInt32
        /// Order in which they began to wait; nil: a request is being read or answered.
        var waitsSince: Int?
    }

    private let limits: Limits
    private var entries: [Int: Entry] = [:]
    private var counts: [UInt32: Int] = [:]
    private var clock = 0

    package init(_ limits: Limits = Limits()) { self.limits = limits }

    package var count: Int { entries.count }
    package func contains(_ id: Int) -> Bool { entries[id] != nil }

    package mutating func admit(_ uid: UInt32, isAdmin: Bool) -> Admission {
        let own = counts[uid] ?? 0
        if own >= limits.perUser {
            guard let evicted = longestWaiting(of: uid) else {
                return .refused(why: "\(own) connections of uid \(uid) are in use, the limit of a user is \(limits.perUser)")
            }
            closed(evicted)
            return .admitted(id: add(uid), evicted: evicted)
        }
        let room = limits.all - (isAdmin || own == 0 ? 0 : limits.reserved)
        guard entries.count >= room else { return .admitted(id: add(uid), evicted: nil) }
        // From who has most. Who is not among the favoured gets no place of others'.
        let holder = isAdmin || own == 0 ? counts.max { ($0.value, $0.key) < ($1.value, $1.key) }?.key ?? uid : uid
        guard let evicted = longestWaiting(of: holder) else {
            return .refused(why: "\(entries.count) connections are open, the limit is \(limits.all)")
        }
        closed(evicted)
        return .admitted(id: add(uid), evicted: evicted)
    }

    /// A request's head has come.
    package mutating func began(_ id: Int) { entries[id]?.waitsSince = nil }

    /// All requests of the connection are answered.
    package mutating func ended(_ id: Int) {
        clock += 1
        entries[id]?.waitsSince = clock
    }

    package mutating func closed(_ id: Int) {
        guard let entry = entries.removeValue(forKey: id), let count = counts[entry.uid] else { return }
        counts[entry.uid] = count == 1 ? nil : count - 1
    }

    private mutating func add(_ uid: UInt32) -> Int {
        clock += 1
        entries[clock] = Entry(uid: uid, waitsSince: clock)
        counts[uid, default: 0] += 1
        return clock
    }

    private func longestWaiting(of uid: UInt32) -> Int? {
        entries.filter { $0.value.uid == uid && $0.value.waitsSince != nil }
            .min { ($0.value.waitsSince ?? 0) < ($1.value.waitsSince ?? 0) }?.key
    }
}
