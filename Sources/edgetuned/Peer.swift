// Who is at the other end of a connection, as the kernel says it, and what they may do. Nothing in a request can
// change the answer.
import CSystemd
import EdgeWire
import Foundation

struct Peer: Equatable, Sendable {
    let uid: UInt32
    let pid: Int32
    /// Primary and supplementary groups at the time of the connect.
    let groups: [UInt32]

    /// Nil for a descriptor that is no connected Unix socket.
    init?(descriptor: Int32) {
        var credentials = edge_ucred()
        var length = socklen_t(MemoryLayout<edge_ucred>.size)
        guard getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &credentials, &length) == 0, credentials.pid > 0 else {
            return nil
        }
        // SO_PEERGROUPS, Linux 4.13. ERANGE tells the length that is needed.
        var groups = [UInt32](repeating: 0, count: 64)
        for _ in 0..<2 {
            var bytes = socklen_t(groups.count * 4)
            if getsockopt(descriptor, SOL_SOCKET, 59, &groups, &bytes) == 0 {
                groups.removeLast(groups.count - Int(bytes) / 4)
                break
            }
            guard errno == ERANGE, bytes <= 65536 * 4 else {
                groups = []
                break
            }
            groups = [UInt32](repeating: 0, count: Int(bytes) / 4)
        }
        self.init(uid: credentials.uid, pid: credentials.pid, groups: [credentials.gid] + groups)
    }

    init(uid: UInt32, pid: Int32, groups: [UInt32]) {
        self.uid = uid
        self.pid = pid
        self.groups = groups
    }
}

enum Role: Int, Comparable, Sendable {
    case stranger, user, admin
    static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// The groups of the configuration as this machine numbers them.
struct AccessRules: Equatable, Sendable {
    /// The daemon's own.
    let ownUid: UInt32
    /// Nil: there is no such group here.
    let userGroup: UInt32?
    let adminGroup: UInt32?

    static func of(_ config: DaemonConfig) -> AccessRules {
        func number(_ name: String) -> UInt32? { getgrnam(name).map { $0.pointee.gr_gid } }
        return AccessRules(ownUid: getuid(), userGroup: number(config.userGroup), adminGroup: number(config.adminGroup))
    }

    /// A daemon that a user started for himself is his: without the groups he is the one who may reach its socket.
    func role(of peer: Peer) -> Role {
        if peer.uid == 0 || peer.uid == ownUid { return .admin }
        if let adminGroup, peer.groups.contains(adminGroup) { return .admin }
        if let userGroup, peer.groups.contains(userGroup) { return .user }
        return .stranger
    }
}

/// One caller of one request.
struct Caller: Sendable {
    let uid: UInt32
    let role: Role
}
