// A daemon and its HTTP service in the process of a test: everything of `serve` that a client's bytes reach, without systemd,
// signals, a queue that runs, and workers. Who a client is is said by the test; what the daemon made of its bytes is told to it.
import EdgeJobs
import EdgeWire
import Foundation
import HummingbirdCore
import Logging
import NIOPosix
import Synchronization

package final class ServedDaemon: Sendable {
    /// A request as the daemon read it.
    package struct Exchange: Sendable {
        package let method: String
        package let path: String
        /// Nil while it is answered.
        package fileprivate(set) var status: Int?
    }

    /// Numbers of the groups that the configuration names.
    package static let (userGroup, adminGroup): (UInt32, UInt32) = (71, 72)

    private final class Shared: Sendable {
        struct Values {
            var daemon: Daemon?
            var passes: [Gate.Pass] = []
            var peer = Peer(uid: 0, pid: 1, groups: [])
            var exchanges: [Exchange] = []
        }
        let values = Mutex(Values())

        func respond(to request: Request) async -> Response {
            let (daemon, peer, index) = values.withLock { values in
                values.exchanges.append(Exchange(method: request.method.rawValue, path: request.uri.path))
                return (values.daemon, values.peer, values.exchanges.count - 1)
            }
            guard let daemon else { return Response(Problem(.internalError, "no state is open")) }
            let response = await daemon.respond(to: request, from: peer)
            // Of one that was given up there is another list by now.
            values.withLock { if $0.exchanges.indices.contains(index) { $0.exchanges[index].status = response.status.code } }
            return response
        }
    }

    private let shared = Shared()
    private let connections: OpenConnections
    private let logger: Logger

    /// Listens until the process ends.
    package init(socket path: String) throws {
        var logger = Logger(label: "edgetuned") { _ in JournalLogHandler() }
        logger.logLevel = .error
        self.logger = logger
        let http = UnixHTTPService(
            socket: try .bound(path: path, group: nil), group: MultiThreadedEventLoopGroup(numberOfThreads: 1), logger: logger,
            patience: ClientPatience(), isAdmin: { _ in false }
        ) { [shared] request, _ in await shared.respond(to: request) }
        connections = http.connections
        Task { await http.run() }
    }

    /// - Parameter directory: of the state and, in `cache`, of what can be made again.
    package func open(state directory: String) async throws {
        let places = Places(
            config: DaemonConfig(), socketOption: nil, stateOption: directory, environment: [:], uid: UInt32.max)
        try places.make()
        var config = DaemonConfig()
        config.blobBytesPerUser = 1 << 20
        let daemon = try await Daemon.opened(
            LiveConfig(config), places, worker: WorkerLaunch(executable: "/nonexistent", environment: [:]),
            // A machine without any of the kernel's files.
            host: HostFiles(root: directory + "/host"),
            access: AccessRules(ownUid: 0, userGroup: Self.userGroup, adminGroup: Self.adminGroup), logger: logger)
        var passes: [Gate.Pass] = []
        // Whatever wants a worker is told that too many run.
        for gate in [daemon.smallOrders, daemon.generating, daemon.merging, daemon.composing, daemon.ranking] {
            while let pass = try? gate.pass() { passes.append(pass) }
        }
        shared.values.withLock { ($0.daemon, $0.passes) = (daemon, passes) }
    }

    package func close() throws {
        let daemon = shared.values.withLock { values in
            defer { (values.daemon, values.passes) = (nil, []) }
            return values.daemon
        }
        try daemon?.store.close()
    }

    /// Ends what readers of a job's events wait for, unless it has ended.
    package func cancel(_ id: String) async throws {
        guard let daemon = shared.values.withLock(\.daemon), let job = try await daemon.store.job(id), !job.state.isFinal else { return }
        _ = try await daemon.queue.act(.cancel, on: id)
    }

    /// Whoever connects from now on is this user.
    package func expect(uid: UInt32, groups: [UInt32]) {
        shared.values.withLock { ($0.peer, $0.exchanges) = (Peer(uid: uid, pid: 1, groups: groups), []) }
    }

    /// All since `expect`, in order.
    package var exchanges: [Exchange] { shared.values.withLock(\.exchanges) }

    package var openConnections: Int { connections.count }
}
