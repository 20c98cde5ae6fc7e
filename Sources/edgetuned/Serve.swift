// `edgetuned serve`: reads the configuration, opens what is durable, resumes what was interrupted, says READY, and
// serves until it is told to stop. The order of starting and of stopping is in this file and nowhere else.
import ArgumentParser
import EdgeJobs
import EdgeWire
import Foundation
import Logging
import NIOCore
import NIOPosix

struct Serve: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Run the daemon.")

    @Option(help: "The configuration file (default: \(DaemonConfig.defaultPath), if it is there).")
    var config: String?
    @Option(help: "Listen here, unless systemd hands a socket over.")
    var socket: String?
    @Option(help: "Keep jobs, models and adapters here.")
    var stateDir: String?
    @Flag(help: "Read the configuration, say what is wrong with it, and exit.")
    var checkConfig = false
    @Option(help: .hidden)
    var workerExecutable: String?
    /// A captured tree in place of the kernel's files.
    @Option(help: .hidden)
    var hostRoot: String?
    /// In place of all that a client may take.
    @Option(help: .hidden)
    var clientSeconds: Int64?

    private var clientPatience: ClientPatience {
        guard let time = clientSeconds.map({ TimeAmount.seconds($0) }) else { return ClientPatience() }
        return ClientPatience(head: time, window: time, answer: time)
    }
    /// Between two looks at the machine.
    @Option(help: .hidden)
    var lookMilliseconds: Int?

    func run() async throws {
        let environment = ProcessInfo.processInfo.environment
        let loaded: DaemonConfig
        do { loaded = try readConfig() } catch {
            FileHandle.standardError.write(Data("edgetuned: \(error)\n".utf8))
            throw ExitCode(78 /* EX_CONFIG */)
        }
        if checkConfig {
            print("the configuration is valid")
            return
        }
        var logger = Logger(label: "edgetuned") { _ in JournalLogHandler() }
        logger.logLevel = environment["EDGETUNED_DEBUG"] == nil ? .info : .debug
        let places = Places(
            config: loaded, socketOption: socket, stateOption: stateDir, environment: environment, uid: getuid())
        do { try await serve(loaded, places, environment, logger) } catch {
            logger.critical("\((StoreError(error) ?? error) as any Error)")
            throw ExitCode.failure
        }
    }

    private func readConfig() throws -> DaemonConfig { try DaemonConfig.read(pathOrDefault: config) }

    private func serve(
        _ loaded: DaemonConfig, _ places: Places, _ environment: [String: String], _ logger: Logger
    ) async throws {
        let signals = Signals()
        umask(0o077)
        try places.make()
        guard let lock = StateLock(places.lock) else { throw ConfigError("another edgetuned uses \(places.state)") }
        defer { lock.release() }

        let config = LiveConfig(loaded)
        let access = AccessRules.of(loaded)
        let host = hostRoot.map(HostFiles.init(root:)) ?? .machine
        let launch = WorkerLaunch(
            executable: workerExecutable ?? Self.ownExecutable,
            environment: Self.workerEnvironment(environment, host))
        let daemon = try await Daemon.opened(
            config, places, worker: launch, host: host, access: access, logger: logger,
            lookInterval: lookMilliseconds.map { Duration.milliseconds($0) })
        let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        let listening =
            if let adopted = Systemd.adoptedSocket() {
                ListeningSocket.adopted(adopted)
            } else {
                try ListeningSocket.bound(path: places.socket, group: access.userGroup)
            }
        let http = UnixHTTPService(
            socket: listening, group: group, logger: logger, patience: clientPatience,
            isAdmin: { access.role(of: $0) == .admin }
        ) { request, peer in
            await daemon.respond(to: request, from: peer)
        }
        let background = Background(daemon: daemon, eventLoop: group.next())
        let server = Task { await http.run() }
        let reporting = Task { await background.reportStatus() }
        let watchdog = Task { await background.feedWatchdog() }
        let tidying = Task { await background.removeOldJobs() }
        // The store failing is the end: what cannot be stored must not be promised.
        let jobs = Task {
            do { try await daemon.queue.run() } catch {
                logger.critical("the queue ended: \((StoreError(error) ?? error) as any Error)")
                kill(getpid(), SIGTERM)
                throw error
            }
        }
        let importing = Task {
            do { try await daemon.imports.run() } catch {
                logger.critical("imports ended: \(error)")
                kill(getpid(), SIGTERM)
                throw error
            }
        }
        Systemd.ready("idle")
        logger.info("edgetuned \(Edgetuned.version), kernel set \(daemon.kernelSet), state in \(places.state)")

        for await signal in signals.stream {
            guard signal == SIGHUP else { break }
            Systemd.reloading()
            do {
                config.replace(with: try readConfig())
                logger.info("configuration read again")
            } catch {
                logger.error("the configuration stays as it was: \(error)")
            }
            Systemd.ready("configuration read again")
        }

        Systemd.stopping()
        logger.info("stopping")
        reporting.cancel()
        tidying.cancel()
        server.cancel()
        await daemon.queue.stop { Systemd.extendTimeout(seconds: 10) }
        let outcome = await jobs.result
        await daemon.imports.stop()
        let importOutcome = await importing.result
        watchdog.cancel()
        await server.value
        await tidying.value
        listening.close()
        try await group.shutdownGracefully()
        try daemon.store.close()
        try outcome.get()
        try importOutcome.get()
    }

    /// Not argv[0]: that need not be a path.
    private static var ownExecutable: String {
        (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? "/usr/bin/edgetuned"
    }

    /// A worker needs to find libraries and its kernel set, and nothing of what systemd tells the daemon.
    private static func workerEnvironment(_ own: [String: String], _ host: HostFiles) -> [String: String] {
        let kept = ["PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "EDGETUNE_KERNELS"]
        var environment = own.filter { kept.contains($0.key) }
        environment[HostFiles.environmentKey] = host == .machine ? nil : host.root
        // A crash's backtrace is another program's work, and a worker starts none.
        environment["SWIFT_BACKTRACE"] = "enable=no"
        return environment
    }
}

/// What runs beside the requests: the status line and the watchdog.
private struct Background: Sendable {
    let daemon: Daemon
    let eventLoop: any EventLoop

    func reportStatus() async {
        var last = ""
        while !Task.isCancelled {
            let text = await statusLine()
            if text != last { Systemd.status(text) }
            last = text
            try? await Task.sleep(for: .seconds(2))
        }
    }

    private func statusLine() async -> String {
        let waiting = (try? await daemon.store.count(of: .queued)) ?? 0
        let running = await daemon.queue.runningJobs
        guard let id = running.first, let job = try? await daemon.store.job(id) else {
            guard waiting > 0 else { return "idle" }
            return "\(waiting) queued" + (await daemon.queue.waits.map { ", the next \($0)" } ?? "")
        }
        guard let progress = job.progress else { return "job \(id) starting, \(waiting) queued" }
        let loss = String(format: "%.3f", progress.loss)
        return "job \(id) step \(progress.step)/\(progress.totalSteps), loss \(loss), "
            + "\(progress.rssBytes >> 20)/\(progress.budgetBytes >> 20) MiB, \(waiting) queued"
    }

    /// After every few minutes, not at times of day: no clock that is set can have it skip or hurry.
    func removeOldJobs() async {
        while !Task.isCancelled {
            do { try await daemon.removeOldJobs() } catch { daemon.logger.error("old jobs stay: \(error)") }
            try? await Task.sleep(for: Daemon.betweenRemovals)
        }
    }

    /// Fed only while the event loop turns and the store answers; a check that does not is named in the log.
    func feedWatchdog() async {
        guard let interval = Systemd.watchdogInterval() else { return }
        while !Task.isCancelled {
            do {
                try await eventLoop.submit {}.get()
                try await daemon.store.ping()
                Systemd.watchdog()
            } catch {
                daemon.logger.error("watchdog not fed: \(error)")
            }
            try? await Task.sleep(for: interval / 3)
        }
    }
}

/// One line per message on stderr, with the level that journald reads from its prefix.
struct JournalLogHandler: LogHandler {
    var metadata: Logger.Metadata = [:]
    var logLevel: Logger.Level = .info

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        let priority =
            switch event.level {
            case .trace, .debug: 7
            case .info: 6
            case .notice: 5
            case .warning: 4
            case .error: 3
            case .critical: 2
            }
        // A newline in a message would start a forged one.
        let text = "\(event.message)".map { $0.isNewline ? " " : $0 }
        FileHandle.standardError.write(Data("<\(priority)>\(String(text))\n".utf8))
    }
}
