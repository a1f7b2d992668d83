// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/openvwire/nsm/internal/garbage"
	"github.com/openvwire/nsm/sdk/nserr"
)

// daemonConfig are the settings of every daemon; its configuration embeds them.
type daemonConfig struct {
	PprofEnabled  bool   `flag:"pprof-enabled" env:"NSM_PPROF_ENABLED" default:"false" help:"serve Go profiles over HTTP, to everybody on this machine; nsm profile needs no port and asks who you are"`
	PprofListenOn string `flag:"pprof-listen-on" env:"NSM_PPROF_LISTEN_ON" default:"localhost:6060" help:"where to serve them"`
}

func (c daemonConfig) common() daemonConfig { return c }

// daemon is what the frame gives to a running daemon.
type daemon struct {
	app *app
	log *slog.Logger
}

// ready prints the one line that says that a part serves: where, and who it is.
func (d *daemon) ready(part, url, id string) {
	fmt.Fprintf(d.app.out, "%-10s listens on %s as %s\n", part, url, id)
}

// daemon finishes a command that runs until it is told to stop. cfg is a
// pointer to a struct that embeds daemonConfig. A whole daemon then reads
//
//	func newRegistry(a *app) *cobra.Command {
//		var cfg registryConfig
//		return a.daemon(&cobra.Command{Use: "registry", Short: …, Example: …}, &cfg,
//			func(ctx context.Context, d *daemon) error {
//				… construct from cfg, with d.log …
//				d.ready("registry", url, id)
//				<-ctx.Done()
//				… close …
//				return nil
//			})
//	}
//
// The frame loads the settings, sets up logging (SIGUSR1 logs everything,
// SIGUSR2 goes back, as with the reference), serves profiles if asked to, and
// turns the end into an exit code: SIGINT, SIGTERM and SIGHUP end ctx, and to end
// because of that is success.
func (a *app) daemon(c *cobra.Command, cfg interface{ common() daemonConfig }, run func(ctx context.Context, d *daemon) error) *cobra.Command {
	c.GroupID = groupDaemon
	c.Args = cobra.NoArgs
	return a.command(c, cfg, func(ctx context.Context, _ []string) error {
		garbage.Collect()
		stopLevels := a.followLevelSignals()
		defer stopLevels()
		if common := cfg.common(); common.PprofEnabled {
			stop, err := serveProfiles(common.PprofListenOn)
			if err != nil {
				return err
			}
			defer stop()
		}
		d := &daemon{app: a, log: slog.Default()}
		err := run(ctx, d)
		if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
			d.log.Info("stopped")
			return nil
		}
		return err
	})
}

// followLevelSignals changes the log level on signals until stop is called.
func (a *app) followLevelSignals() (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range signals {
			level := slog.Level(a.LogLevel)
			if s == syscall.SIGUSR1 {
				level = levelTrace
			}
			a.level.Set(level)
			slog.Log(context.Background(), slog.LevelError, "log level set by signal", "signal", s.String())
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
		<-done
	}
}

// serveProfiles serves net/http/pprof until stop is called.
func serveProfiles(address string) (stop func(), err error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, nserr.BadFlag.Errorf("--pprof-listen-on: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	server := &http.Server{Handler: mux}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // ends with Close
	}()
	return func() {
		_ = server.Close()
		<-done
	}, nil
}
