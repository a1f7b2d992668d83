// SPDX-License-Identifier: Apache-2.0

// Package report is what the programs that measure have in common: a place of
// their own to run in, what a reader must know of the machine, and tables that
// are written into a document.
package report

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// OwnRun gives the program a /run of its own, a tmpfs as wherever systemd is:
// nothing else on the machine sees its namespaces and sockets, and their making
// takes as long as there. It starts the program again, once: a mount namespace
// is a thread's until exec.
func OwnRun() error {
	const inside = "NSM_REPORT_INSIDE"
	if os.Getenv(inside) == "" {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("a mount namespace: %w; it needs root", err)
		}
		return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), inside+"=1"))
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	return nil
}

// Machine is where and when something was measured, and what.
type Machine struct {
	Date   string `json:"date"`
	Kernel string `json:"kernel"`
	CPU    string `json:"cpu"`
	Build  string `json:"build"` // nsm's version and the Go it was built with
	// Others is how many processors were busy in the second before the run. The load
	// average would still tell of the compiler that has just built the program.
	Others float64 `json:"others"`
}

// Describe returns this machine and the nsm program.
func Describe(ctx context.Context, nsm string) Machine {
	m := Machine{Date: time.Now().UTC().Format("2006-01-02 15:04 MST"), Kernel: "unknown", CPU: cpuModel(), Build: runtime.Version(), Others: busyProcessors(ctx, time.Second)}
	if version, err := exec.CommandContext(ctx, nsm, "version").Output(); err == nil {
		m.Build = strings.TrimSpace(string(version)) // "nsm v0.1.0 (9ac672ca128d) go1.26.8 linux/amd64"
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	return m
}

// Load returns the machine's load average of the last minute, as the kernel says it.
func Load() string {
	data, _ := os.ReadFile("/proc/loadavg")
	load, _, _ := strings.Cut(string(data), " ")
	return load
}

func cpuModel() string {
	model := runtime.GOARCH
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	return fmt.Sprintf("%d × %s", runtime.NumCPU(), model)
}

// busyProcessors is how many processors are busy meanwhile; 0 if the kernel does not
// say.
func busyProcessors(ctx context.Context, meanwhile time.Duration) float64 {
	before := readTicks()
	select {
	case <-time.After(meanwhile):
	case <-ctx.Done():
	}
	after := readTicks()
	if after.all == before.all {
		return 0
	}
	return float64(runtime.NumCPU()) * float64(after.busy-before.busy) / float64(after.all-before.all)
}

// ticks are those of all processors since the machine has started.
type ticks struct{ busy, all uint64 }

func readTicks() ticks {
	data, _ := os.ReadFile("/proc/stat")
	return parseTicks(string(data))
}

// parseTicks reads the first line of /proc/stat: proc_stat(5).
func parseTicks(stat string) (t ticks) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(strings.TrimPrefix(line, "cpu "))
	const idle, iowait, guest = 3, 4, 8
	for i, f := range fields[:min(len(fields), guest)] { // guests' are in user's, too
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return ticks{}
		}
		if t.all += n; i != idle && i != iowait {
			t.busy += n
		}
	}
	return t
}

// Busy reports whether the machine had other things to do when the run began.
func (m Machine) Busy() bool { return m.Others >= 0.3 }

// Heading is a line of Markdown that says it all.
func (m Machine) Heading() string {
	return fmt.Sprintf("%s; %s; %s; %s; %.2f processors busy in the second before the run\n\n", m.Date, m.Kernel, m.CPU, m.Build, m.Others)
}

// Verdict says whether a budget was met.
func Verdict(met bool) string {
	if met {
		return "met"
	}
	return "**missed**"
}

// Figure prints a value with three digits.
func Figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// WriteDoc replaces tables in a document: what stands between <!-- NAME -->
// and <!-- /NAME -->. One that is empty was not measured, and stays.
func WriteDoc(path string, tables map[string]string) error {
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for name, table := range tables {
		if table == "" {
			continue
		}
		if doc, err = replaceBetween(doc, "<!-- "+name+" -->\n", "<!-- /"+name+" -->", table); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return os.WriteFile(path, doc, 0o644)
}

func replaceBetween(doc []byte, begin, end, with string) ([]byte, error) {
	before, rest, ok := bytes.Cut(doc, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		return nil, fmt.Errorf("no %q … %q", strings.TrimSpace(begin), end)
	}
	return bytes.Join([][]byte{before, []byte(begin), []byte(with), []byte(end), after}, nil), nil
}
