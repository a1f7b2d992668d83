// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"github.com/openvwire/nsm/sdk/nserr"
)

type testDaemonConfig struct {
	daemonConfig
	Name string `flag:"name" env:"NSM_NAME" default:"test" help:"own name"`
}

// runDaemon runs a daemon command, made of run, with args.
func runDaemon(ctx context.Context, t *testing.T, run func(context.Context, *daemon) error, args ...string) (out string, code int) {
	t.Helper()
	var both bytes.Buffer
	code = runDaemonTo(ctx, &both, run, args...)
	return both.String(), code
}

func runDaemonTo(ctx context.Context, out io.Writer, run func(context.Context, *daemon) error, args ...string) int {
	before := slog.Default()
	defer slog.SetDefault(before)
	a := newApp()
	a.out, a.err = out, out
	root := a.root()
	var cfg testDaemonConfig
	root.AddGroup(groups[2])
	root.AddCommand(a.daemon(&cobra.Command{Use: "test"}, &cfg, run))
	root.SetArgs(append([]string{"test"}, args...))
	return a.exit(root.ExecuteContext(ctx))
}

func TestDaemonStopsWhenTold(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out, code := runDaemon(ctx, t, func(ctx context.Context, d *daemon) error {
		d.ready("registry", "tcp://127.0.0.1:5002", "spiffe://nsm.local/registry")
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}, "--log-format=json")
	for _, part := range []string{"registry   listens on tcp://127.0.0.1:5002 as spiffe://nsm.local/registry\n", `"msg":"stopped"`} {
		if !strings.Contains(out, part) {
			t.Errorf("output lacks %q:\n%s", part, out)
		}
	}
	if code != exitOK {
		t.Errorf("exit code %d, want %d", code, exitOK)
	}
}

func TestDaemonFails(t *testing.T) {
	out, code := runDaemon(t.Context(), t, func(context.Context, *daemon) error {
		return nserr.AddressInUse.Errorf("port 5002 is taken")
	})
	if code != exitFailed || !strings.Contains(out, "nsm: NSM-4008: port 5002 is taken") {
		t.Errorf("exit code %d, output %q", code, out)
	}
}

// lines is a writer that hands on what is written.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

func TestDaemonLogLevelBySignal(t *testing.T) {
	log := make(lines, 10)
	code := runDaemonTo(t.Context(), log, func(ctx context.Context, d *daemon) error {
		for _, step := range []struct {
			signal syscall.Signal
			want   slog.Level
		}{{syscall.SIGUSR1, levelTrace}, {syscall.SIGUSR2, slog.LevelWarn}} {
			if err := syscall.Kill(syscall.Getpid(), step.signal); err != nil {
				return err
			}
			if line := <-log; !strings.Contains(line, step.signal.String()) {
				t.Errorf("logged %q on %v", line, step.signal)
			}
			if got := d.app.level.Level(); got != step.want {
				t.Errorf("level %v after %v, want %v", got, step.signal, step.want)
			}
		}
		return nil
	}, "--log-level=warning")
	if code != exitOK {
		t.Errorf("exit code %d, want %d", code, exitOK)
	}
}

func TestDaemonServesProfiles(t *testing.T) {
	var url string
	_, code := runDaemon(t.Context(), t, func(context.Context, *daemon) error {
		reply, err := http.Get(url)
		if err != nil {
			return err
		}
		defer http.DefaultClient.CloseIdleConnections()
		defer reply.Body.Close()
		body, err := io.ReadAll(reply.Body)
		if err == nil && !strings.Contains(string(body), "goroutine") {
			err = errors.New("no goroutine profile: " + string(body))
		}
		return err
	}, func() []string {
		port := freePort(t)
		url = "http://" + port + "/debug/pprof/"
		return []string{"--pprof-enabled", "--pprof-listen-on", port}
	}()...)
	if code != exitOK {
		t.Errorf("exit code %d, want %d", code, exitOK)
	}
	_, code = runDaemon(t.Context(), t, func(context.Context, *daemon) error {
		t.Error("ran without its profiles")
		return nil
	}, "--pprof-enabled", "--pprof-listen-on=nowhere")
	if code != exitUsage {
		t.Errorf("exit code %d, want %d", code, exitUsage)
	}
}

func TestLoggerNamesTrace(t *testing.T) {
	var out bytes.Buffer
	newLogger(&out, "text", levelTrace).Log(t.Context(), levelTrace, "hello")
	if !strings.Contains(out.String(), "level=TRACE msg=hello") {
		t.Errorf("logged %q", out.String())
	}
}
