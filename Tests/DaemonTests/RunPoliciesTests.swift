// What policies make of captured machines, without a clock and without a daemon.
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

import edgetuned

private let gibibyte: UInt64 = 1 << 30

private func conditions(
    _ zones: [ThermalZone] = [], power: HostPower = .mains, minute: Int = 12 * 60, free: UInt64 = 100 * gibibyte
) -> HostConditions {
    HostConditions(zones: zones, power: power, minuteOfDay: minute, diskFreeBytes: free, diskTotalBytes: 200 * gibibyte)
}

@Suite struct RunPoliciesTests {
    // MARK: heat

    @Test(arguments: CapturedBoard.allCases)
    func everyBoardHasItsLimitAndRunsWhenIdle(_ board: CapturedBoard) throws {
        let directory = try TemporaryDirectory()
        let host = try CapturedHost(board, in: directory.path)
        let hottest = board.hottest
        func look() -> [ThermalZone] { HostThermal.zones(HostFiles(root: host.root)) }
        let policies = RunPolicies()
        #expect(policies.obstacle(conditions(look()), .start) == nil, "\(look())")
        let zone = try #require(look().first { $0.name == hottest.name })
        #expect(policies.limit(of: zone, in: look()) == Double(hottest.pausesAt))
        // A run goes on to just below the limit; one starts below it and the hysteresis.
        let limit = hottest.pausesAt * 1000
        for (millidegrees, runs, starts) in [
            (limit - 8001, true, true), (limit - 8000, true, false), (limit - 1, true, false), (limit, false, false),
        ] {
            try host.setTemperature(millidegrees, zone: hottest.index)
            #expect((policies.obstacle(conditions(look()), .run) == nil) == runs, "\(millidegrees)")
            #expect((policies.obstacle(conditions(look()), .start) == nil) == starts, "\(millidegrees)")
        }
        #expect(
            policies.obstacle(conditions(look()), .run)?.reason
                == "waits for a cooler board: \(hottest.name) is at \(hottest.pausesAt) °C, runs pause at \(hottest.pausesAt) °C "
                + "(\(hottest.throttling)) and start below \(hottest.pausesAt - 8) °C")
    }

    @Test func whatIsNoThrottlingPointIsNotTakenForOne() throws {
        let directory = try TemporaryDirectory()
        let host = try CapturedHost(.laptop, in: directory.path)
        let zones = HostThermal.zones(HostFiles(root: host.root))
        let limits = zones.map { RunPolicies().limit(of: $0, in: zones) }
        // acpitz: 15 °C before its critical 128; INT3400 and the radio have no trip that means anything.
        #expect(zones.map(\.name) == ["acpitz", "INT3400 Thermal", "x86_pkg_temp", "iwlwifi_1"])
        #expect(limits == [108, nil, 95, nil])
    }

    @Test func aPiOfAnEarlierGenerationIsNotHeldToItsCriticalTrip() throws {
        let directory = try TemporaryDirectory()
        let host = try CapturedHost(in: directory.path)
        try host.write("raspberrypi,4-model-b\0brcm,bcm2711\0", to: "/sys/firmware/devicetree/base/compatible")
        try host.zone(0, "cpu-thermal", 50_000, [("critical", 90_000)])
        let zones = HostThermal.zones(HostFiles(root: host.root))
        #expect(RunPolicies().limit(of: zones[0], in: zones) == 75)
        // Without the device tree (a container) it is 15 °C before the end.
        try FileManager.default.removeItem(atPath: host.root + "/sys/firmware")
        let bare = HostThermal.zones(HostFiles(root: host.root))
        #expect(RunPolicies().limit(of: bare[0], in: bare) == 70)
    }

    @Test(arguments: ["", "hot", "-273150", "200000", "4294967295000"])
    func aBrokenSensorIsNoSensor(_ reading: String) throws {
        let directory = try TemporaryDirectory()
        let host = try CapturedHost(.raspberryPi5, in: directory.path)
        try host.write(reading + "\n", to: "/sys/class/thermal/thermal_zone0/temp")
        #expect(HostThermal.zones(HostFiles(root: host.root)) == [])
    }

    @Test func aZoneThatIsSwitchedOffIsNotAsked() throws {
        let directory = try TemporaryDirectory()
        let host = try CapturedHost(.raspberryPi5, in: directory.path)
        try host.write("disabled\n", to: "/sys/class/thermal/thermal_zone0/mode")
        #expect(HostThermal.zones(HostFiles(root: host.root)) == [])
    }

    @Test func aConfiguredLimitHoldsForTheProcessorAndAFixedOneForAnythingElseOnlyWithoutOne() {
        let cpu = ThermalZone(name: "cpu", celsius: 61, throttling: .init(celsius: 85, source: "x"))
        let room = ThermalZone(name: "room", celsius: 61, throttling: nil)
        var policies = RunPolicies()
        policies.mostHeat = .celsius(60)
        policies.hysteresis = 3
        #expect(
            policies.obstacle(conditions([room, cpu]), .run)?.detail == "cpu is at 61 °C, runs pause at 60 °C and start below 57 °C")
        #expect(policies.obstacle(conditions([room]), .run)?.detail.hasPrefix("room is at 61 °C") == true)
        policies.mostHeat = .unlimited
        #expect(policies.obstacle(conditions([cpu]), .start) == nil)
    }

    @Test func textsOfLimits() {
        #expect(RunPolicies.MostHeat("auto") == .belowThrottling && RunPolicies.MostHeat("off") == .unlimited)
        #expect(RunPolicies.MostHeat("72.5") == .celsius(72.5))
        for text in ["", "29", "121", "nan", "warm", "-5"] { #expect(RunPolicies.MostHeat(text) == nil, "\(text)") }
        #expect(RunPolicies.OnBattery("40%") == .runAbove(40) && RunPolicies.OnBattery("run") == .run)
        for text in ["", "0%", "100%", "40", "never"] { #expect(RunPolicies.OnBattery(text) == nil, "\(text)") }
    }

    // MARK: power

    @Test func whatTheMachineRunsOn() throws {
        let directory = try TemporaryDirectory()
        let host = try CapturedHost(.laptop, in: directory.path)
        func power() -> HostPower { HostPower(HostFiles(root: host.root)) }
        #expect(power() == .mains)
        try host.unplug(percent: 70)
        #expect(power() == .battery(percent: 70))
        // By USB-C instead: programmable supplies say 2.
        try host.supply("ucsi-source-psy-USBC000:001", ["online": "2"])
        #expect(power() == .mains)
        try host.supply("ucsi-source-psy-USBC000:001", ["online": "0"])
        try host.supply("BAT1", ["type": "Battery", "present": "1", "status": "Unknown", "capacity": "97"])
        #expect(power() == .battery(percent: 97))
        try host.supply("BAT1", ["present": "0"])
        try host.supply("BAT0", ["capacity": "full"])
        #expect(power() == .battery(percent: nil))
        for board in [CapturedBoard.raspberryPi5, .n100, .rk3588] {
            let other = try TemporaryDirectory()
            #expect(HostPower(HostFiles(root: try CapturedHost(board, in: other.path).root)) == .mains)
        }
    }

    @Test func onBattery() {
        var policies = RunPolicies()
        let low = conditions(power: .battery(percent: 42))
        #expect(policies.obstacle(low, .run)?.reason == "waits for mains power: on battery, 42 %")
        policies.onBattery = .run
        #expect(policies.obstacle(low, .start) == nil)
        policies.onBattery = .runAbove(40)
        #expect(policies.obstacle(low, .run) == nil)
        #expect(
            policies.obstacle(low, .start)?.reason
                == "waits for mains power: on battery, 42 %, runs pause below 40 % and start from 45 %")
        #expect(policies.obstacle(conditions(power: .battery(percent: 45)), .start) == nil)
        #expect(policies.obstacle(conditions(power: .battery(percent: 39)), .run) != nil)
        #expect(policies.obstacle(conditions(power: .battery(percent: nil)), .run)?.detail.hasPrefix("on battery, runs") == true)
        policies.onBattery = .runAbove(99)
        #expect(policies.obstacle(conditions(power: .battery(percent: 100)), .start) == nil)
    }

    // MARK: hours and disk

    @Test func theDaemonsHoursAndTheJobsMustBothBeOpen() {
        var policies = RunPolicies()
        policies.hours = DayWindow("22:00-06:00")
        let own = DayWindow("05:00-08:00")
        func reason(_ minute: Int) -> String? { policies.obstacle(conditions(minute: minute), jobHours: own, .run)?.reason }
        #expect(reason(5 * 60) == nil && reason(6 * 60 - 1) == nil)
        #expect(reason(6 * 60) == "waits for its hours: the daemon's run_between is 22:00-06:00")
        #expect(reason(23 * 60) == "waits for its hours: the job's run_between is 05:00-08:00")
    }

    @Test func aDiskFloorWithRoomForAStart() {
        let policies = RunPolicies()
        func obstacle(_ mebibytes: UInt64, _ phase: RunPhase, spill: UInt64 = 0) -> Obstacle? {
            policies.obstacle(conditions(free: mebibytes << 20), spill: spill << 20, phase)
        }
        #expect(obstacle(512, .run) == nil && obstacle(511, .run) != nil)
        #expect(obstacle(640, .start) == nil)
        #expect(
            obstacle(639, .start)?.reason
                == "waits for disk space: 639 MiB are free, runs pause below 512 MiB and start from 640 MiB")
        #expect(obstacle(700, .start, spill: 100) != nil && obstacle(700, .run, spill: 100) == nil)
        var share = policies
        share.leastFreeDisk = .share(0.05)
        #expect(share.obstacle(conditions(free: 10 * gibibyte), .run) == nil)
        #expect(share.obstacle(conditions(free: 10 * gibibyte - 1), .run)?.kind == .disk)
        share.leastFreeDisk = nil
        #expect(share.obstacle(conditions(free: 0), .start) == nil)
    }

    @Test func theReportHasEveryPolicyWithItsFigures() throws {
        let directory = try TemporaryDirectory()
        let host = try CapturedHost(.rk3588, in: directory.path)
        let zones = HostThermal.zones(HostFiles(root: host.root))
        let report = RunPolicies().report(
            conditions(zones, power: .battery(percent: 42)),
            pressure: MemoryPressure("some avg10=1.50 avg60=0 avg300=0 total=0\nfull avg10=0.00 avg60=0 avg300=0 total=0\n"))
        #expect(report.map(\.name) == ["hours", "power", "heat", "disk", "memory"])
        #expect(report.map(\.allows) == [true, false, true, true, true])
        #expect(
            report.map(\.text) == [
                "always", "on battery, 42 %",
                "littlecore-thermal is at 44.6 °C, runs pause at 80 °C (its passive trip is at 85 °C) and start below 72 °C",
                "102400 MiB are free, runs pause below 512 MiB", "pressure, some avg10 1.5 %, runs start below 5.0 %",
            ])
    }
}
