// What systemd would see: a real notify socket, real socket activation.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

/// A datagram socket as systemd's.
private final class NotifySocket {
    let path: String
    private let descriptor: Int32

    init(path: String) throws {
        self.path = path
        descriptor = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard result == 0 else { throw TestFailure("bind \(path)") }
        var timeout = timeval(tv_sec: 0, tv_usec: 100_000)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { close(descriptor) }

    /// Messages until one has `text`, or five seconds.
    func receive(until text: String) -> [String] {
        var messages: [String] = []
        var buffer = [UInt8](repeating: 0, count: 4096)
        let deadline = Date().addingTimeInterval(5)
        while Date() < deadline, messages.last?.contains(text) != true {
            let count = recv(descriptor, &buffer, buffer.count, 0)
            if count > 0 { messages.append(String(decoding: buffer[..<count], as: UTF8.self)) }
        }
        return messages
    }
}

@Suite(.serialized) struct SystemdTests {
    @Test func readinessWatchdogReloadAndStoppingAreTold() throws {
        let directory = try TemporaryDirectory()
        let notify = try NotifySocket(path: directory.path + "/notify")
        let daemon = try DaemonProcess(
            in: directory.path, environment: ["NOTIFY_SOCKET": notify.path, "WATCHDOG_USEC": "600000"])
        #expect(notify.receive(until: "READY=1").last?.contains("READY=1") == true)
        #expect(notify.receive(until: "WATCHDOG=1").last == "WATCHDOG=1")
        kill(daemon.process.processIdentifier, SIGHUP)
        #expect(notify.receive(until: "RELOADING=1").last?.contains("MONOTONIC_USEC=") == true)
        #expect(notify.receive(until: "READY=1").last?.contains("READY=1") == true)
        #expect(daemon.terminate() == 0)
        #expect(notify.receive(until: "STOPPING=1").last?.contains("STOPPING=1") == true)
    }

    @Test func theStatusNamesTheRunningJobAndItsStep() throws {
        let directory = try TemporaryDirectory()
        let notify = try NotifySocket(path: directory.path + "/notify")
        let worker = try FakeWorker.write(in: directory.path, train: FakeWorker.waitForStop())
        let daemon = try DaemonProcess(
            in: directory.path, workerExecutable: worker, environment: ["NOTIFY_SOCKET": notify.path])
        let digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        _ = try daemon.call(
            "PATCH", Endpoint.blob(digest), headers: [Header.uploadOffset: "0", Header.uploadLength: "3"],
            body: Data("abc".utf8))
        _ = try daemon.post(Endpoint.models, ImportRequest(name: "m", blob: digest))
        _ = try daemon.post(Endpoint.datasets, ImportRequest(name: "d", blob: digest))
        let job = try daemon.post(
            Endpoint.jobs, JobRequest(baseModel: "m", datasets: [DatasetReference(path: "d")])
        ).decoded(JobStatus.self)
        #expect(notify.receive(until: "step 1/3").last?.contains(job.id) == true)
        #expect(daemon.terminate() == 0)
        #expect(notify.receive(until: "EXTEND_TIMEOUT_USEC").last?.contains("EXTEND_TIMEOUT_USEC") == true)
    }

    @Test(.enabled(if: FileManager.default.isExecutableFile(atPath: "/usr/bin/systemd-socket-activate")))
    func aHandedOverSocketIsServedAndLeftInPlace() throws {
        let directory = try TemporaryDirectory()
        let socket = directory.path + "/activated.sock"
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/systemd-socket-activate")
        process.arguments = ["-l", socket, DaemonProcess.binary, "serve", "--state-dir", directory.path + "/state"]
        process.standardError = FileHandle(forWritingAtPath: "/dev/null")
        try process.run()
        for _ in 0..<500 where !FileManager.default.fileExists(atPath: socket) { usleep(10_000) }
        let client = try RawHTTP.connect(socket)
        defer { close(client) }
        RawHTTP.send(RawHTTP.request("GET", Endpoint.health), to: client)
        #expect(try RawHTTP.answer(try RawHTTP.readAll(client)).status == 200)
        process.terminate()
        process.waitUntilExit()
        #expect(FileManager.default.fileExists(atPath: socket))
    }
}
